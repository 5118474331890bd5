"""Models that come with the package: their names, their folders, and the one that speaks where none is named."""

import difflib
import functools
import logging
import os
from pathlib import Path

PACKAGED_MODELS = {"audiogen-tiny": Path(__file__).parent / "assets" / "audiogen-tiny"}
DEFAULT_MODEL = "audiogen-tiny"

logger = logging.getLogger(__name__)
logger.setLevel(logging.INFO)


def resolve_model_name(name_or_path: str | os.PathLike) -> str | os.PathLike:
    """The folder of a model that comes with the package, where that is what the name says.

    As everywhere in transformers, a local folder of that name goes first.

    Args:
        name_or_path (`str` or `os.PathLike`): The name of a packaged model, a Hub id or a folder.

    Returns:
        The folder of the packaged model; anything else as it is.

    Raises:
        `ValueError`: if the name is a misspelt one of a packaged model.
    """
    if not isinstance(name_or_path, str) or os.path.isdir(name_or_path):
        return name_or_path
    if name_or_path in PACKAGED_MODELS:
        return str(PACKAGED_MODELS[name_or_path])
    # No AudioGen on the Hub is without an owner in its name.
    if "/" not in name_or_path and (meant := difflib.get_close_matches(name_or_path, PACKAGED_MODELS, cutoff=0.8)):
        raise ValueError(f"there is no model {name_or_path!r}; did you mean {meant[0]!r}, which is in the package?")
    return name_or_path


def default_model_notice(argument: str) -> str:
    """One line for those who named no model. `argument` names a model where they are: `--model` or `model=`."""
    return (
        f"Model: {DEFAULT_MODEL}, the small one in the package. For more and better sounds: "
        f"{argument} (CC BY-NC 4.0, 7 GB to download)"
    )


@functools.cache
def announce_default_model() -> None:
    """Logs the notice at the level of information, once a process.

    It goes to standard error where nobody has set up logging.
    """
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
    logger.info(default_model_notice('model="facebook/audiogen-medium"'))
