"""What all tests share: a Hugging Face cache of their own, no network, and the tiny checkpoint converted once."""

import os
import shutil
import tempfile

import pytest

# Before anything imports huggingface_hub, which reads these once. Workers of pytest-xdist inherit the folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="audiogen-hf-tests-")
for name in ("HF_HUB_CACHE", "HF_ASSETS_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_DISABLE_PROGRESS_BARS"):
    os.environ.pop(name, None)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_sessionfinish(session, exitstatus):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def reference():
    """What AudioCraft computed from the tiny checkpoint, by name; see fixtures/README.md."""
    from safetensors.torch import load_file
    from testing_utils import FIXTURES

    return load_file(FIXTURES / "reference.safetensors")


@pytest.fixture(scope="session")
def model():
    """The tiny checkpoint. Shared: a test that changes a model loads its own with `testing_utils.load_model`."""
    from testing_utils import load_model

    return load_model()


@pytest.fixture(scope="session")
def model_as_audiocraft():
    """The tiny checkpoint, attending to the padding of texts as AudioCraft does. Shared, too."""
    from testing_utils import load_model

    return load_model(attend_to_text_padding=True)


@pytest.fixture(scope="session")
def processor():
    from testing_utils import CHECKPOINT, TEXT_ENCODER

    from audiogen_hf import AudioGenProcessor

    return AudioGenProcessor.from_pretrained(CHECKPOINT, text_encoder=TEXT_ENCODER)


@pytest.fixture
def packaged_model(monkeypatch):
    """Lets the tiny checkpoint be the model `audiogen-tiny` of the package; its folder."""
    from testing_utils import CHECKPOINT, TEXT_ENCODER

    from audiogen_hf import packaged_models
    from audiogen_hf.convert_audiocraft import converted_checkpoint

    folder = converted_checkpoint(CHECKPOINT, text_encoder=TEXT_ENCODER)
    monkeypatch.setitem(packaged_models.PACKAGED_MODELS, "audiogen-tiny", folder)
    packaged_models.announce_default_model.cache_clear()
    return folder
