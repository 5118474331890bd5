"""Auto classes know AudioGen after `import audiogen_hf`, which stays cheap."""

import json

import pytest
from testing_utils import json_of, load_model, run_python
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTextToWaveform,
    AutoProcessor,
    AutoTokenizer,
)

import audiogen_hf
from audiogen_hf import AudioGenConfig, AudioGenDecoderConfig, AudioGenForConditionalGeneration, AudioGenProcessor
from audiogen_hf.modeling_audiogen import AudioGenDecoder


@pytest.fixture(scope="module")
def saved(tmp_path_factory, processor):
    folder = tmp_path_factory.mktemp("saved")
    load_model().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_auto_classes_load_our_types(saved):
    assert type(AutoConfig.from_pretrained(saved)) is AudioGenConfig
    assert type(AutoModel.from_pretrained(saved)) is AudioGenForConditionalGeneration
    assert type(AutoModelForTextToWaveform.from_pretrained(saved)) is AudioGenForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(saved)) is AudioGenProcessor
    assert AutoTokenizer.from_pretrained(saved)("rain")["input_ids"]


def test_auto_classes_make_our_types_from_configurations():
    config = AutoConfig.for_model("audiogen_decoder", hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
    assert type(config) is AudioGenDecoderConfig
    assert type(AutoModel.from_config(config)) is AudioGenDecoder
    assert type(AutoConfig.for_model("audiogen")) is AudioGenConfig


def test_importing_loads_neither_torch_nor_transformers():
    code = """
import json, sys, time
start = time.perf_counter()
import audiogen_hf
seconds = time.perf_counter() - start
heavy = [name for name in ("torch", "transformers", "huggingface_hub", "numpy", "soundfile") if name in sys.modules]
print(json.dumps({"heavy": heavy, "seconds": seconds, "names": dir(audiogen_hf)}))
"""
    result = json_of(run_python(code))
    assert result["heavy"] == [] and result["seconds"] < 0.5
    assert set(audiogen_hf.__all__) <= set(result["names"])


ORDERS = {
    "ours first": "import audiogen_hf, transformers",
    "a model of transformers next": "import audiogen_hf\nfrom transformers import T5EncoderModel",
    "transformers first": "import transformers, audiogen_hf",
    "an Auto class first": "from transformers import AutoModelForTextToWaveform, AutoProcessor\nimport audiogen_hf",
    "our classes first": "from audiogen_hf import AudioGenProcessor, AudioGenForConditionalGeneration",
    "our modules first": "import audiogen_hf.modeling_audiogen\nimport audiogen_hf.processing_audiogen",
    "twice": "import importlib, audiogen_hf\nimport transformers\nimportlib.reload(audiogen_hf)",
}
CHECK = """
import json, sys
from transformers import AutoConfig, AutoModel, AutoModelForTextToWaveform, AutoProcessor
kinds = [AutoConfig.from_pretrained(sys.argv[1]), AutoModelForTextToWaveform.from_pretrained(sys.argv[1])]
kinds += [AutoProcessor.from_pretrained(sys.argv[1]), AutoModel.from_pretrained(sys.argv[1])]
print(json.dumps([f"{type(kind).__module__}.{type(kind).__name__}" for kind in kinds]))
"""


# Two are enough for every day, as each takes a process; in this one transformers came first.
@pytest.mark.parametrize(
    "order", [*[*ORDERS][:2], *(pytest.param(order, marks=pytest.mark.slow) for order in [*ORDERS][2:])]
)
def test_registration_holds_in_every_import_order(saved, order):
    names = json_of(run_python(f"{ORDERS[order]}\n{CHECK}", saved))
    model = "audiogen_hf.modeling_audiogen.AudioGenForConditionalGeneration"
    assert names == [
        "audiogen_hf.configuration_audiogen.AudioGenConfig",
        model,
        "audiogen_hf.processing_audiogen.AudioGenProcessor",
        model,
    ]


def test_names_resolve_and_unknown_ones_are_named():
    for name in audiogen_hf.__all__:
        assert getattr(audiogen_hf, name) is not None, name
    with pytest.raises(AttributeError, match="module 'audiogen_hf' has no attribute 'AudioGenn'"):
        _ = audiogen_hf.AudioGenn
    assert json.dumps(audiogen_hf.__version__)
