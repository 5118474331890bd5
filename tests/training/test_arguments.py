"""Options come from the command line and from YAML, through one parser, and bad ones are named in one line."""

from dataclasses import dataclass, field

import pytest

from audiogen_hf.training.arguments import one_line_errors, parse_arguments


@dataclass
class Options:
    data: str = field(metadata={"help": "required"})
    learning_rate: float = 1e-3
    max_steps: int = 10
    scales: list[int] = field(default_factory=lambda: [1, 2])
    shuffle: bool = True
    note: str | None = None

    def __post_init__(self):
        if self.max_steps < 1:
            raise ValueError(f"max_steps: got {self.max_steps}, takes 1 or more")


def config(tmp_path, text):
    (tmp_path / "options.yaml").write_text(text)
    return ["--config", str(tmp_path / "options.yaml")]


def test_defaults_command_line_and_both_spellings():
    assert parse_arguments(Options, ["--data", "d"]) == Options("d")
    options = parse_arguments(Options, ["--data=d", "--learning-rate", "3e-4", "--no_shuffle", "--scales", "4", "8"])
    assert options == Options("d", learning_rate=3e-4, shuffle=False, scales=[4, 8])


def test_yaml_gives_every_type_and_the_command_line_wins(tmp_path):
    text = "data: folder with space\nlearning_rate: 3e-4\nscales: [5, 6]\nshuffle: false\nnote: -x\nmax_steps: 7\n"
    argv = config(tmp_path, text)
    assert parse_arguments(Options, argv) == Options("folder with space", 3e-4, 7, [5, 6], False, "-x")
    options = parse_arguments(Options, [*argv, "--max_steps", "8", "--scales", "1", "--shuffle"])
    assert (options.max_steps, options.scales, options.shuffle) == (8, [1], True)


def test_lists_may_be_empty(tmp_path):
    assert parse_arguments(Options, ["--data", "d", "--scales"]).scales == []
    assert parse_arguments(Options, config(tmp_path, "data: d\nscales: []\n")).scales == []


def test_null_in_yaml_leaves_the_default(tmp_path):
    assert parse_arguments(Options, config(tmp_path, "data: d\nnote: null\nmax_steps:\n")) == Options("d")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: d\nlerning_rate: 1", "unknown option 'lerning_rate'"),
        ("data: d\nmax_steps: 1.5", "invalid int value: '1.5'"),
        ("data: d\nmax_steps: 0", "max_steps: got 0, takes 1 or more"),
        ("max_steps: 3", "required: --data"),
        ("- a\n- b", "must map option names to values, got list"),
        ("data: [", "while parsing"),
        ("data: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ],
)
def test_a_bad_file_ends_in_one_line_and_code_2(tmp_path, capsys, text, message):
    with pytest.raises(SystemExit) as exit_:
        parse_arguments(Options, config(tmp_path, text))
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_file_and_an_unknown_flag_end_in_one_line_and_code_2(tmp_path, capsys):
    bad = [(["--config", str(tmp_path / "none")], "no such file, and none of the presets"), (["--max=3"], "--data")]
    for argv, message in bad:
        with pytest.raises(SystemExit) as exit_:
            parse_arguments(Options, argv)
        error = capsys.readouterr().err
        assert exit_.value.code == 2
        assert message in error
        assert error.count("\n") == 1


def test_one_line_errors_reports_bad_input_and_lets_bugs_through(capsys):
    with pytest.raises(SystemExit) as exit_, one_line_errors():
        raise ValueError("data: no such\nfolder")
    assert exit_.value.code == 2
    assert capsys.readouterr().err.endswith("error: data: no such folder\n")
    with pytest.raises(KeyError), one_line_errors():
        raise KeyError("bug")
