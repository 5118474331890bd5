"""Options as dataclasses, read from the command line, from a YAML file, or from both (the command line wins)."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import yaml
from transformers import HfArgumentParser

Options = TypeVar("Options")

PRESETS = Path(__file__).with_name("presets")


class _Parser(HfArgumentParser):
    def add_argument(self, *names, **kwargs):
        if kwargs.get("nargs") == "+":
            kwargs["nargs"] = "*"  # a list may be empty
        return super().add_argument(*names, **kwargs)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse_arguments(
    options_class: type[Options], argv: Sequence[str] | None = None, description: str | None = None
) -> Options:
    """Build `options_class` from command line arguments, and from the YAML file that `--config` names, if any.

    `--config` takes a file, or the name of one in `presets/`. It holds option names and values; a value of null leaves
    the default. An unknown name, a value of the wrong type, or a `ValueError` from the dataclass's `__post_init__`
    ends the process with one line and exit code 2.

    Args:
        options_class: a dataclass as `transformers.HfArgumentParser` takes it.
        argv: arguments, without the program's name; default `sys.argv[1:]`.
        description: first line of `--help`.
    """
    parser = _Parser(options_class, description=description, allow_abbrev=False)
    parser.add_argument("--config", help="YAML file of options, or a preset's name; options given here as well win")
    argv = list(sys.argv[1:] if argv is None else argv)

    config_parser = _Parser(add_help=False, allow_abbrev=False, prog=parser.prog)
    config_parser.add_argument("--config")
    config_file = config_parser.parse_known_args(argv)[0].config
    try:
        if config_file is not None:
            argv = _yaml_arguments(config_file, options_class) + argv
        values = vars(parser.parse_args(argv))
        del values["config"]
        return options_class(**values)
    except ValueError as error:
        parser.error(str(error))


def _yaml_arguments(path: str, options_class: type) -> list[str]:
    """The options of a YAML file as command line arguments, so that both are checked by the same parser."""
    preset = PRESETS / f"{path}.yaml"
    try:
        options = yaml.safe_load((preset if preset.is_file() else Path(path)).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        presets = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
        raise ValueError(f"--config {path}: no such file, and none of the presets {presets}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        raise ValueError(f"--config {path}: must map option names to values, got {type(options).__name__}")
    names = {field.name for field in dataclasses.fields(options_class)}
    arguments = []
    for name, value in options.items():
        if name not in names:
            raise ValueError(f"--config {path}: unknown option {name!r}")
        if isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)]
        elif value is not None:
            arguments.append(f"--{name}={value}")
    return arguments


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a `ValueError` or `OSError` about the user's input into one line on stderr and exit code 2.

    Meant around reading input and setting up, not around training, where a traceback is of more use.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error
