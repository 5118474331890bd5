"""The card that goes with weights, as it lies in the folder or arrives at the Hub."""

import shutil
from pathlib import Path

import pytest
from hub_utils import HubStandIn, cache_repository
from huggingface_hub import ModelCard
from testing_utils import CHECKPOINT, TEXT_ENCODER, load_model, run_python, tiny_model

from audiogen_hf import AudioGenConfig, export_audiocraft
from audiogen_hf.convert_audiocraft import converted_checkpoint
from audiogen_hf.model_card import provenance

META = {"base_model": "facebook/audiogen-medium", "license": "cc-by-nc-4.0"}


def card_of(folder) -> ModelCard:
    return ModelCard.load(Path(folder) / "README.md")


def test_saved_weights_say_what_they_are(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    card = card_of(tmp_path)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-to-audio"
    assert "audiogen_hf" in card.data.tags
    assert card.data.license is None and card.data.base_model is None
    for part in ("## How to use", "## Limits", "## Licence", "mono at 16000 Hz", "2 layers of width 16, 2 heads"):
        assert part in card.text
    assert "{" not in card.text.replace('{"audio_length_in_s": 5.0}', "")


def test_a_readme_that_is_there_is_kept(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    tiny_model().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_weights_derived_from_meta_keep_licence_and_origin_through_saves(tmp_path):
    model = tiny_model(**META)
    model.save_pretrained(tmp_path / "first")
    again = type(model).from_pretrained(tmp_path / "first")  # as a fine-tuning would
    again.save_pretrained(tmp_path / "second")
    card = card_of(tmp_path / "second")
    assert card.data.license == "cc-by-nc-4.0" and card.data.base_model == "facebook/audiogen-medium"
    assert "no commercial use" in card.text and "English descriptions" in card.text
    export_audiocraft(again, tmp_path / "exported", text_encoder="t5-small")
    exported = card_of(tmp_path / "exported")
    assert exported.data.license == "cc-by-nc-4.0" and exported.data.library_name == "audiocraft"


def test_conversion_of_a_hub_repository_keeps_its_id_and_licence(tmp_path):
    cache_repository(tmp_path, "facebook/audiogen-medium", CHECKPOINT)
    folder = converted_checkpoint("facebook/audiogen-medium", text_encoder=TEXT_ENCODER, cache_dir=tmp_path)
    card = card_of(folder)
    assert card.data.license == "cc-by-nc-4.0" and card.data.base_model == "facebook/audiogen-medium"
    assert AudioGenConfig.from_pretrained(folder).base_model == "facebook/audiogen-medium"


def test_conversion_of_a_folder_takes_the_licence_of_its_readme(tmp_path):
    source = shutil.copytree(CHECKPOINT, tmp_path / "source")
    assert load_model(source, cache_dir=tmp_path).config.license is None
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Mine\n")
    config = AudioGenConfig.from_pretrained(source, text_encoder=TEXT_ENCODER)
    assert (config.base_model, config.license) == (None, "apache-2.0")


@pytest.mark.parametrize("damaged", ["---\n: [\n---\n", "---\n- a list\n---\n", "no metadata"])
def test_a_damaged_readme_of_the_source_is_no_obstacle(tmp_path, damaged):
    (tmp_path / "README.md").write_text(damaged)
    assert provenance(tmp_path, tmp_path / "README.md") == (None, None)


def test_a_snapshot_in_the_hub_cache_is_recognised(tmp_path):
    snapshot = cache_repository(tmp_path, "facebook/audiogen-medium", CHECKPOINT)
    assert provenance(snapshot, None) == ("facebook/audiogen-medium", "cc-by-nc-4.0")
    assert provenance("someone/audiogen", None) == ("someone/audiogen", None)


PUSH = """
import sys
from testing_utils import tiny_model

model = tiny_model(base_model="facebook/audiogen-medium", license="cc-by-nc-4.0")
model.push_to_hub("me/pushed", tags=["birds"])
model.save_pretrained(sys.argv[1], push_to_hub=True, repo_id="me/saved")
model.push_to_hub("me/described")
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """What a Hub holds after a process has run PUSH; `me/described` had a card before."""
    folder = tmp_path_factory.mktemp("hub")
    with HubStandIn() as hub:
        hub.repositories["me/described"] = {"README.md": b"---\nlicense: mit\n---\n# Written by hand\n"}
        run_python(PUSH, folder / "saved", env=hub.environment(folder))
    return hub.repositories


@pytest.mark.parametrize("repo_id", ["me/pushed", "me/saved"])
def test_the_hub_gets_the_card_with_the_weights(repositories, repo_id):
    files = repositories[repo_id]
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md"} <= files.keys()
    card = ModelCard(files["README.md"].decode())
    assert card.data.pipeline_tag == "text-to-audio" and card.data.library_name == "transformers"
    assert card.data.license == "cc-by-nc-4.0" and card.data.base_model == "facebook/audiogen-medium"
    assert f'model="{repo_id}"' in card.text
    assert ("birds" in card.data.tags) == (repo_id == "me/pushed")


def test_a_card_on_the_hub_is_kept(repositories):
    files = repositories["me/described"]
    assert "model.safetensors" in files
    assert ModelCard(files["README.md"].decode()).text.strip() == "# Written by hand"
