"""`pipeline`: the call of transformers, which here takes AudioCraft's checkpoints and packaged models as well."""

import os

import transformers

from .convert_audiocraft import HUB_OPTIONS, converted_checkpoint
from .packaged_models import DEFAULT_MODEL, announce_default_model, resolve_model_name

TASK = "text-to-audio"


def pipeline(
    task: str | None = None,
    model=None,
    *,
    text_encoder: str | os.PathLike | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    model_kwargs: dict | None = None,
    **kwargs,
) -> transformers.Pipeline:
    """
    Builds a pipeline as [`transformers.pipeline`] does. `model` may also be a Hub repository or folder in AudioCraft's
    layout, which the stock call refuses; it is converted once, into the Hugging Face cache. Without a model,
    `audiogen-tiny` speaks, which comes with the package.

    Args:
        task (`str`, *optional*): `"text-to-audio"`; the default for a checkpoint of AudioCraft, and without a model.
        model (`str`, `os.PathLike` or `PreTrainedModel`, *optional*): A model, or a Hub id, a folder or
            `"audiogen-tiny"`, which is the default.
        text_encoder (`str`, *optional*): For AudioCraft's layout, a folder or Hub id that overrides the text encoder
            which the checkpoint names.
        revision, token, model_kwargs, kwargs: As in [`transformers.pipeline`].

    Returns:
        `transformers.Pipeline`: for AudioGen a `TextToAudioPipeline`, which returns `{"audio", "sampling_rate"}` for a
        text and a list of these for a list of texts.

    Raises:
        `ValueError`: if an AudioCraft checkpoint is damaged or is not an AudioGen, or `text_encoder` is given for
            another layout.

    ```python
    >>> from audiogen_hf import pipeline

    >>> pipe = pipeline("text-to-audio", model="facebook/audiogen-medium")  # doctest: +SKIP
    >>> sound = pipe("a dog barks", generate_kwargs={"audio_length_in_s": 5.0})  # doctest: +SKIP
    >>> sound["audio"].shape, sound["sampling_rate"]  # doctest: +SKIP
    ((80000,), 16000)
    ```
    """
    if model is None and task in (None, TASK):
        announce_default_model()
        task, model = TASK, DEFAULT_MODEL
    folder = None
    if isinstance(model, (str, os.PathLike)):
        if (packaged := resolve_model_name(model)) != model:
            task, model = task or TASK, packaged
        given = {"revision": revision, "token": token, **kwargs, **(model_kwargs or {})}
        hub_kwargs = {name: value for name, value in given.items() if name in HUB_OPTIONS}
        folder = converted_checkpoint(model, text_encoder=text_encoder, **hub_kwargs)
    if folder is not None:
        task, model, revision = task or TASK, folder, None
    elif text_encoder is not None:
        raise ValueError(
            "`text_encoder` overrides the text encoder that an AudioCraft checkpoint names; "
            f"{model!r} is not in AudioCraft's layout and carries its own."
        )
    return transformers.pipeline(task, model, revision=revision, token=token, model_kwargs=model_kwargs, **kwargs)


__all__ = ["pipeline"]
