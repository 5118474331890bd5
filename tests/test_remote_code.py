"""A folder saved with its code loads where this library is not installed."""

import json

import pytest
from testing_utils import PROMPTS, generate_codes, json_of, run_python

from audiogen_hf import AudioGenConfig, AudioGenForConditionalGeneration, AudioGenProcessor

WITHOUT_US = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "audiogen_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
LOAD = """
from transformers import AutoConfig, AutoModelForTextToWaveform, AutoProcessor

prompts, folder, copy = json.loads(sys.argv[1]), *sys.argv[2:]

def load_and_generate(folder):
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForTextToWaveform.from_pretrained(folder, trust_remote_code=True)
    options = {"max_new_tokens": 5, "do_sample": False, "guidance_scale": 3.0, "return_dict_in_generate": True}
    codes = model.generate(**processor(text=prompts), **options).audio_codes
    modules = {type(part).__module__.split(".")[0] for part in (config, processor, model)}
    return model, processor, codes.tolist(), modules

try:
    AutoModelForTextToWaveform.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    untrusted = str(error)
model, processor, codes, modules = load_and_generate(folder)
model.save_pretrained(copy)
processor.save_pretrained(copy)
_, _, codes_of_copy, modules_of_copy = load_and_generate(copy)
print(json.dumps({
    "codes": [codes, codes_of_copy],
    "modules": sorted(modules | modules_of_copy),
    "ours": [name for name in sys.modules if name.startswith("audiogen_hf")],
    "untrusted": untrusted,
}))
"""


@pytest.fixture
def folder_with_code(model, processor, tmp_path, monkeypatch):
    for cls, auto_class in [
        (AudioGenConfig, "AutoConfig"),
        (AudioGenForConditionalGeneration, "AutoModelForTextToWaveform"),
        (AudioGenProcessor, "AutoProcessor"),
    ]:
        monkeypatch.setattr(cls, "_auto_class", None)  # what is registered here ends with the test
        cls.register_for_auto_class(auto_class)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_saved_code_generates_the_same_without_the_library(folder_with_code, model, processor, tmp_path):
    config = json.loads((folder_with_code / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_audiogen.AudioGenConfig",
        "AutoModelForTextToWaveform": "modeling_audiogen.AudioGenForConditionalGeneration",
    }
    result = json_of(run_python(WITHOUT_US + LOAD, json.dumps(PROMPTS), folder_with_code, tmp_path / "copy"))
    expected = generate_codes(model, processor(text=PROMPTS), max_new_tokens=5).tolist()
    # What is saved there still carries its code.
    assert result["codes"] == [expected, expected]
    assert result["modules"] == ["transformers_modules"] and result["ours"] == []
    assert "trust_remote_code=True" in result["untrusted"]
