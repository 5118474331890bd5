"""The README that goes with saved weights: what the model is, how to use it, its limits, its licence."""

import os
import re
import uuid
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData, file_exists, metadata_load

CARD_FILE = "README.md"
TAGS = ["audiogen_hf", "audiogen"]
META_LICENSE = "cc-by-nc-4.0"
META_LICENSE_URL = "https://creativecommons.org/licenses/by-nc/4.0/"

TEXT = """
# {title}

AudioGen turns a description into sound: {channels} at {sampling_rate} Hz. A text encoder reads the description, a
transformer writes {num_codebooks} streams of codes, {frame_rate} codes a second each, and an EnCodec decoder turns
these into a waveform. The papers are [AudioGen](https://arxiv.org/abs/2209.15352) and
[MusicGen](https://arxiv.org/abs/2306.05284).

| part | size |
|---|---|
| decoder | {num_layers} layers of width {hidden_size}, {num_heads} heads |
| codes | {num_codebooks} codebooks of {codebook_size} |
| window | {segment_duration:g} s |
{base_row}
## How to use

With the library `audiogen_hf` installed:

```python
from audiogen_hf import pipeline

pipe = pipeline("text-to-audio", model="{model_id}")
sound = pipe("a dog barks", generate_kwargs={{"audio_length_in_s": 5.0}})
sound["audio"], sound["sampling_rate"]
```

or, with every parameter of generation at hand:

```python
from audiogen_hf import AudioGenForConditionalGeneration, AudioGenProcessor

processor = AudioGenProcessor.from_pretrained("{model_id}")
model = AudioGenForConditionalGeneration.from_pretrained("{model_id}")
audio = model.generate(**processor(text=["a dog barks"]), audio_length_in_s=5.0)
processor.save_audio("dog.wav", audio[0])
```

On the command line: `audiogen-hf generate "a dog barks" --model {model_id}`.

## Limits

- It was trained on windows of {segment_duration:g} s. Longer sounds are continued window by window, and the model
  hears no more of the past than its window.
- It makes what its training data holds, with that data's gaps and biases.
{meta_limits}- Nothing marks its output as generated: say so where you publish it.

## Licence

{license_text}
"""

# Facts of the model card of facebook/audiogen-medium, AudioCraft 1.3 (model_cards/AUDIOGEN_MODEL_CARD.md).
META_LIMITS = """\
- Meta trained the original on English descriptions; others work less well.
- It cannot make realistic voices.
- Meta released it for research, and asks for an evaluation of the risks before any other use.
"""


def provenance(name_or_path: str | os.PathLike, readme: str | os.PathLike | None) -> tuple[str | None, str | None]:
    """Where weights come from and under which licence.

    Args:
        name_or_path (`str` or `os.PathLike`): The Hub id or folder of the weights.
        readme (`str` or `os.PathLike`, *optional*): Their model card, where they have one.

    Returns:
        The Hub id, `None` for a folder outside the Hugging Face cache, and the licence's id, `None` where nobody
        says. The licence is the card's; weights of Meta's repositories without a card are under CC-BY-NC 4.0.
    """
    cached = re.search(r"models--(.+?)--(.+?)/snapshots/", f"{Path(name_or_path).absolute()}/")
    repo_id = None if os.path.exists(name_or_path) else str(name_or_path)
    if cached:
        repo_id = f"{cached[1]}/{cached[2]}"
    try:
        license = (metadata_load(readme) or {}).get("license") if readme is not None else None
    except (ValueError, yaml.YAMLError):  # a README with damaged metadata says nothing
        license = None
    if license is None and _is_of_meta(repo_id):
        license = META_LICENSE
    return repo_id, license


def _is_of_meta(repo_id: str | None) -> bool:
    return repo_id is not None and repo_id.startswith("facebook/")


def make_model_card(config, repo_id: str | None = None, library_name: str = "transformers") -> ModelCard:
    """The card of a model.

    Args:
        config ([`AudioGenConfig`]): Its configuration; `base_model` and `license` are carried over.
        repo_id (`str`, *optional*): The repository it is made for.
        library_name (`str`, *optional*, defaults to `"transformers"`): The library whose layout the weights have.
    """
    decoder = config.decoder
    data = ModelCardData(
        library_name=library_name,
        license=config.license,
        base_model=config.base_model,
        pipeline_tag="text-to-audio",
        tags=list(TAGS),
    )
    text = TEXT.format(
        title=repo_id or "AudioGen: text to sound",
        model_id=repo_id or "path/to/this/folder",
        channels="stereo" if decoder.audio_channels == 2 else "mono",
        sampling_rate=config.sampling_rate,
        frame_rate=config.frame_rate,
        num_codebooks=decoder.num_codebooks,
        codebook_size=decoder.vocab_size,
        num_layers=decoder.num_hidden_layers,
        hidden_size=decoder.hidden_size,
        num_heads=decoder.num_attention_heads,
        segment_duration=config.segment_duration,
        base_row=f"| made from | {config.base_model} |\n" if config.base_model else "",
        meta_limits=META_LIMITS if _is_of_meta(config.base_model) else "",
        license_text=_license_text(config),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


def _license_text(config) -> str:
    source = f"`{config.base_model}`" if config.base_model else "the weights that these derive from"
    if config.license is None:
        return "Nobody has stated one. Whoever publishes these weights names it here and in `license` above."
    text = f"`{config.license}`, that of {source}, and it holds for what is made from these weights by training, too."
    if config.license == META_LICENSE:
        credit = "the FAIR team of Meta AI" if _is_of_meta(config.base_model) else "their authors"
        text += f" See {META_LICENSE_URL}: give credit to {credit}, and no commercial use."
    return text


def write_model_card(folder: str | os.PathLike, config, repo_id: str | None = None, **kwargs) -> Path:
    """Writes the card of a model into its folder, unless a README is there already.

    Args:
        folder (`str` or `os.PathLike`): Where the weights lie.
        config, repo_id, kwargs: As in [`make_model_card`].
    """
    path = Path(folder) / CARD_FILE
    if not path.exists():
        _save(make_model_card(config, repo_id, **kwargs), path)
    return path


def write_model_card_for_upload(
    folder: str | os.PathLike, config, repo_id: str, token: str | bool | None = None, **kwargs
) -> Path:
    """Replaces the card in a folder about to be uploaded by one that names the repository.

    Tags of the card that lies there are kept. Where the repository has a card, nothing is done: whoever wrote it is
    right.
    """
    path = Path(folder) / CARD_FILE
    if not file_exists(repo_id, CARD_FILE, token=token):
        card = make_model_card(config, repo_id, **kwargs)
        given = (metadata_load(path) or {}).get("tags") if path.exists() else None
        card.data.tags = list(dict.fromkeys([*TAGS, *(given or [])]))
        _save(card, path)
    return path


def _save(card: ModelCard, path: Path):
    temporary = path.with_name(f".{CARD_FILE}.{uuid.uuid4().hex}")
    try:
        card.save(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
