"""Every command and every line of code of the training guide runs, in its order, with tiny sizes added."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from hub_utils import HubStandIn, cache_repository, use_tiny_audiogen_medium
from lm_utils import ROOT, SOUNDS, environment
from testing_utils import TEXT_ENCODER

GUIDE = (ROOT / "docs" / "source" / "training.md").read_text(encoding="utf-8")
CONFIGS = ROOT / "examples" / "accelerate_configs"
TINY = {
    "examples/train_audiogen.py": "--max_steps 2 --save_steps 1 --logging_steps 1 --warmup_steps 1 --batch_size 2 "
    "--segment_duration 1 --num_workers 0 --mixed_precision no --num_samples 1",
    "examples/tokenize_dataset.py": "--segment_duration 1 --batch_size 2",
    "utils/benchmark_training.py": "--scale xsmall --seconds 0.2 --steps 1 --rounds 1",
}


def blocks() -> list[tuple[str, str]]:
    return re.findall(r"^```(bash|python)\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the guide's commands are given: sounds in data/, the tiny checkpoint as facebook/audiogen-medium."""
    from peft import IA3Config

    use_tiny_audiogen_medium(tmp_path / "hub", monkeypatch)
    cache_repository(tmp_path / "hub", "t5-small", TEXT_ENCODER)
    shutil.copytree(SOUNDS, tmp_path / "data")
    IA3Config(target_modules=["kv_proj", "fc2"], feedforward_modules=["fc2"]).save_pretrained(tmp_path / "ia3")
    for name in ("examples", "utils"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_in_this_process(script: str, arguments: list[str], monkeypatch):
    tiny = TINY[script].split()
    if script.endswith("train_audiogen.py") and "--model_name_or_path" not in arguments:
        tiny += ["--model_scale", "xsmall"]
    monkeypatch.setattr(sys, "argv", [script, *arguments, *tiny])
    runpy.run_path(script, run_name="__main__")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_the_training_guide_runs(folder, monkeypatch):
    from audiogen_hf.training.lm import trainer

    scripts = []
    namespace = {}
    with HubStandIn() as hub:
        api = trainer.HfApi(endpoint=hub.endpoint, token="hf_test")

        def go_online():
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
            return api

        monkeypatch.setattr(trainer, "HfApi", go_online)  # uploading is the last that the guide does
        for language, code in blocks():
            if language == "python":
                exec(compile(code, "training.md", "exec"), namespace)
                continue
            for command in code.strip().splitlines():
                program, *arguments = shlex.split(command)
                if program == "accelerate":
                    # The launcher's part is read by accelerate itself; the script runs here, as one process.
                    script = next(i for i, argument in enumerate(arguments) if argument.endswith(".py"))
                    launcher = launch_command_parser().parse_args([*arguments[1:script], arguments[script]])
                    assert launcher.config_file is None or load_config_from_file(launcher.config_file).num_processes
                    run_in_this_process(arguments[script], arguments[script + 1 :], monkeypatch)
                elif program == "tensorboard":
                    command = [sys.executable, "-m", "tensorboard.main", "--inspect", *arguments]
                    result = subprocess.run(command, capture_output=True, text=True, check=True)
                    assert "conditional/0" in result.stdout
                else:
                    command = [sys.executable, *arguments, *TINY[arguments[0]].split()]
                    result = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
                    assert "| transformers MusicGen |" in result.stdout
                scripts.append(program)
        assert {"README.md", "model.safetensors"} <= hub.repositories["you/audiogen-animals"].keys()

    assert scripts.count("accelerate") >= 12
    assert (folder / "runs" / "ia3" / "last" / "model.safetensors").is_file()
    assert (folder / "runs" / "lora" / "last" / "adapter_model.safetensors").is_file()
    assert namespace["audio"].shape == (1, 1, 32000)


def test_every_option_of_the_guide_exists():
    from audiogen_hf.training.arguments import PRESETS
    from audiogen_hf.training.lm.arguments import AudioGenTrainingArguments

    launcher = {"--config_file", "--num_processes", "--config", "--help", "--compile", "--scale"}
    others = {"--model", "--dataset", "--output", "--text_states", "--logdir", "--steps", "--rounds", "--clear"}
    machines = {"--num_machines", "--machine_rank", "--main_process_ip", "--main_process_port", "--dtype"}
    options = {f"--{name}" for name in AudioGenTrainingArguments.__dataclass_fields__}
    named = set(re.findall(r"(?<!\w)--[a-z]\w+", GUIDE))
    assert named <= options | launcher | others | machines, named - options - launcher - others - machines
    for preset in re.findall(r"--config (\w+)(?![\w/])", GUIDE):
        assert preset in ("runs",) or (PRESETS / f"{preset}.yaml").is_file(), preset


def test_every_configuration_of_accelerate_is_read_and_named_in_the_guide():
    for path in CONFIGS.glob("*.yaml"):
        config = load_config_from_file(str(path))
        assert config.num_processes >= 1
        if path.stem != "cpu":
            assert path.name in GUIDE
    assert load_config_from_file(str(CONFIGS / "multi_node.yaml")).num_machines == 4
