"""Writes a trained audiogen-tiny as it lies in the package: weights in 8 bits, tokenizer, card, licences, authors.

    python examples/tiny/package_model.py runs/tiny/last --top-k 50
    python examples/tiny/evaluate.py --data data/tiny --output evaluation
    python examples/tiny/package_model.py runs/tiny/last --top-k 50 --results evaluation/results.json

The model is what examples/train_audiogen.py exports. It is evaluated as it is packaged, so that the card with the
figures is written in a second pass.
"""

import argparse
import csv
import json
import shutil
import sys
from collections import Counter, defaultdict
from pathlib import Path

import yaml
from evaluate import PARTS
from huggingface_hub import ModelCard, ModelCardData
from transformers.utils.logging import disable_progress_bar

from audiogen_hf import AudioGenForConditionalGeneration, AudioGenProcessor
from audiogen_hf.int8_storage import save_int8
from audiogen_hf.model_card import CARD_FILE, TAGS
from audiogen_hf.packaged_models import PACKAGED_MODELS
from audiogen_hf.training.checkpointing import atomic_folder

HERE = Path(__file__).parent
NAME = "audiogen-tiny"
MAX_BYTES = 30_000_000
TEXT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
LICENSE = "cc-by-sa-4.0"
LICENSES = {  # of sounds.csv: name and address
    "CC-BY-SA-2.0": ("CC BY-SA 2.0", "https://creativecommons.org/licenses/by-sa/2.0/"),
    "CC-BY-SA-3.0": ("CC BY-SA 3.0", "https://creativecommons.org/licenses/by-sa/3.0/"),
    "CC-BY-SA-3.0+": ("CC BY-SA 3.0 or later", "https://creativecommons.org/licenses/by-sa/3.0/"),
    "CC-BY-SA-4.0": ("CC BY-SA 4.0", "https://creativecommons.org/licenses/by-sa/4.0/"),
    "CC-BY-3.0": ("CC BY 3.0", "https://creativecommons.org/licenses/by/3.0/"),
    "CC0-1.0": ("CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
    "MIT": ("MIT", "https://opensource.org/license/mit"),
    "public-domain": ("public domain", "https://creativecommons.org/public-domain/pdm/"),
}
REGISTRIES = {"debian": "Debian", "pypi": "PyPI", "npm": "npm"}

CARD = """
# {name}

A small AudioGen that turns a description into {window:g} s of sound: mono, {sampling_rate:,} Hz. It comes with the
library `audiogen_hf`, for first steps, tests and laptops without a network. For more kinds of sounds, and better ones,
there is `facebook/audiogen-medium`, a hundred times its size.

| part | parameters | |
|---|---:|---|
| decoder | {decoder_parameters:,} | {layers} layers of width {width}, from scratch |
| tokenizer of sound | {codec_parameters:,} | EnCodec, {codes}, from scratch |
| text encoder | {text_parameters:,} | [all-MiniLM-L6-v2]({text_encoder_url}) with a smaller vocabulary |

Matrices are stored in 8 bits with scales. The text encoder was not trained further.

## How to use

```bash
audiogen-hf generate "{example}"
```

```python
from audiogen_hf import pipeline

pipe = pipeline("text-to-audio", model="{name}")
sound = pipe("{example}")
sound["audio"], sound["sampling_rate"]
```

Its defaults are {duration:g} s, guidance scale {guidance_scale:g}, temperature {temperature:g}, top-k {top_k}.

## Data

{files:,} freely licensed recordings, 94 minutes, out of games and sound collections that Debian, PyPI and npm
distribute. `ATTRIBUTION.md` names every author. Scripts in `examples/tiny` of the library build the data, train both
parts, evaluate and package the model. It knows {num_classes} kinds of sounds:

{classes}.

{training}{evaluation}## Limits

- It makes these {num_classes} kinds of sounds and mixes of two. Of other texts it makes the kind that their words are
  nearest to, or noise.
- No music, no words: what voices it has laugh, cough, cheer and the like.
- Many kinds come from a few recordings, so that sounds of these are close to them, and vary little.
- Windows are {window:g} s. Longer sounds are continued window by window, and the model hears no more of the past.
- It reads English. Numbers, order and "without" mean little to it.
- Codes of {bandwidth:g} kbit/s lose detail, most of all in noisy sounds.
- Nothing marks its output as generated: say so where you publish it.

## Licence

The weights are under [CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/), as the recordings ask for. The
text encoder in them stays under the Apache License 2.0, which is that of the library's code, too.
"""

ATTRIBUTION = """\
# Attribution

{name} was trained on {files:,} recordings by the authors below, who have nothing to do with it otherwise. They were
resampled to 16 kHz, mixed down, trimmed, levelled, cut, varied and mixed; `examples/tiny/sounds.csv` of the library
audiogen_hf names every file.

| author | licence | files | packages |
|---|---|---:|---|
{rows}

| licence | files | |
|---|---:|---|
{licenses}

The text encoder is {text_encoder}, by the Sentence Transformers team,
under the Apache License 2.0. Its vocabulary was reduced, and its weights are stored in 8 bits.
"""

LICENSE_TEXT = """\
The weights in this folder are licensed under the Creative Commons Attribution-ShareAlike 4.0 International License:
https://creativecommons.org/licenses/by-sa/4.0/legalcode. To credit them, name {name} and audiogen_hf; ATTRIBUTION.md
names the authors of the recordings that they were trained on.

The weights of the text encoder (their names begin with "text_encoder.") and its tokenizer derive from {text_encoder},
and are licensed under the Apache License, Version 2.0: LICENSE-APACHE. Changes: the vocabulary was reduced, and the
weights are stored in 8 bits.
"""


def read_sounds() -> list[dict[str, str]]:
    """The rows of sounds.csv: a recording each.

    Raises:
        ValueError: A recording has a licence that is not known here, or none.
    """
    with open(HERE / "sounds.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["licence"] not in LICENSES:
            raise ValueError(f"sounds.csv: {row['member']} has the licence {row['licence']!r}, which nobody looked at")
    return rows


def make_attribution(rows: list[dict[str, str]]) -> str:
    """Authors and licences, the ones with the most recordings first, with the packages that hold these."""
    packages, files = defaultdict(set), Counter()
    for row in rows:
        key = (row["author"], row["licence"])
        files[key] += 1
        packages[key].add(f"{row['package']} {row['version']} ({REGISTRIES[row['registry']]})")
    by_author = [
        f"| {author.replace('|', ' ')} | {LICENSES[id][0]} | {count} | {', '.join(sorted(packages[author, id]))} |"
        for (author, id), count in sorted(files.items(), key=lambda item: (-item[1], item[0]))
    ]
    by_license = [
        f"| {LICENSES[id][0]} | {count} | {LICENSES[id][1]} |"
        for id, count in Counter(row["licence"] for row in rows).most_common()
    ]
    return ATTRIBUTION.format(
        name=NAME,
        files=len(rows),
        rows="\n".join(by_author),
        licenses="\n".join(by_license),
        text_encoder=TEXT_ENCODER,
    )


def make_card(model, rows: list[dict[str, str]], training: str, results: dict | None) -> ModelCard:
    """The model card.

    Args:
        model ([`AudioGenForConditionalGeneration`]): The model, with the generation config that it is packaged with.
        rows: Of sounds.csv.
        training: What the card of the trained model says of its training, or "".
        results: What evaluate.py wrote, if anything.
    """
    captions = yaml.safe_load((HERE / "captions.yaml").read_text(encoding="utf-8"))
    config, defaults = model.config, model.generation_config
    decoder = config.decoder
    parts = {"decoder": (model.decoder, model.enc_to_dec_proj, model.lm_head)}
    parts |= {"codec": (model.audio_encoder,), "text": (model.text_encoder,)}
    data = ModelCardData(
        language="en",
        license=LICENSE,
        library_name="audiogen_hf",
        pipeline_tag="text-to-audio",
        tags=[*TAGS, "sound-effects"],
    )
    text = CARD.format(
        name=NAME,
        window=config.segment_duration,
        sampling_rate=config.sampling_rate,
        layers=decoder.num_hidden_layers,
        width=decoder.hidden_size,
        codes=f"{decoder.num_codebooks} codebooks of {decoder.vocab_size:,}, {config.frame_rate} codes a second",
        bandwidth=config.audio_encoder.target_bandwidths[-1],
        **{
            f"{name}_parameters": sum(p.numel() for module in modules for p in module.parameters())
            for name, modules in parts.items()
        },
        text_encoder_url=f"https://huggingface.co/{TEXT_ENCODER}",
        example=captions["dog_bark"]["phrase"],
        duration=defaults.max_new_tokens / config.frame_rate,
        guidance_scale=defaults.guidance_scale,
        temperature=defaults.temperature,
        top_k=defaults.top_k,
        files=len(rows),
        num_classes=len(captions),
        classes=", ".join(name.replace("_", " ") for name in sorted(captions)),
        training=training,
        evaluation=evaluation_section(results) if results is not None else "",
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


def evaluation_section(results: dict) -> str:
    """The report of evaluate.py as a section of the card."""
    renderers = {heading: render for part, (_, heading, render) in PARTS.items() if part in results}
    seeds = results["settings"]["seeds"]
    sections = [f"## Evaluation\n\n{len(results['classes'])} classes, {seeds} seeds a prompt, 5 s each."]
    sections += [f"### {heading}\n\n{render(results)}" for heading, render in renderers.items()]
    return "\n\n".join(sections) + "\n\n"


def training_section(folder: Path) -> str:
    """What the card of a trained model says from its heading "Training" on."""
    card = folder / CARD_FILE
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    _, heading, rest = text.partition("\n## Training\n")
    return f"{heading.lstrip()}{rest.rstrip()}\n\n" if heading else ""


def package_model(source: Path, target: Path, sampling: dict[str, float], results: dict | None) -> int:
    """Writes the packaged form of a trained model.

    Args:
        source: Folder of the model and its processor.
        target: Folder to write; replaced if it exists.
        sampling: Defaults of generation to set.
        results: What evaluate.py wrote, if anything.

    Returns:
        The size of the folder in bytes.

    Raises:
        ValueError: The model is too large, or a recording's licence is not known. Nothing is written.
    """
    model = AudioGenForConditionalGeneration.from_pretrained(source, dtype="float32")
    processor = AudioGenProcessor.from_pretrained(source)
    model.config.license, model.config.base_model = LICENSE, None
    model.config.text_encoder._name_or_path, model.config.audio_encoder._name_or_path = TEXT_ENCODER, ""
    model.generation_config.update(**sampling)
    rows = read_sounds()
    with atomic_folder(target) as folder:
        save_int8(model, processor, folder)
        (folder / "ATTRIBUTION.md").write_text(make_attribution(rows), encoding="utf-8")
        (folder / "LICENSE").write_text(LICENSE_TEXT.format(name=NAME, text_encoder=TEXT_ENCODER), encoding="utf-8")
        shutil.copy(HERE.parent.parent / "LICENSE", folder / "LICENSE-APACHE")
        make_card(model, rows, training_section(source), results).save(folder / CARD_FILE)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size > MAX_BYTES:
            raise ValueError(f"the packaged model has {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:g}")
    return size


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder that examples/train_audiogen.py exported")
    parser.add_argument(
        "--output", type=Path, default=PACKAGED_MODELS[NAME], help="folder to write (default: the package's own)"
    )
    parser.add_argument("--results", type=Path, help="results.json of evaluate.py, for the card")
    sampling = parser.add_argument_group("defaults of generation", "Those of the model, unless given.")
    sampling.add_argument("--guidance-scale", type=float)
    sampling.add_argument("--temperature", type=float)
    sampling.add_argument("--top-k", type=int)
    options = parser.parse_args(arguments)
    sampling = {name: getattr(options, name) for name in ("guidance_scale", "temperature", "top_k")}
    disable_progress_bar()  # of loading
    try:
        results = None if options.results is None else json.loads(options.results.read_text(encoding="utf-8"))
        size = package_model(
            options.model,
            options.output,
            {name: value for name, value in sampling.items() if value is not None},
            results,
        )
    except (ValueError, OSError) as error:
        print(f"package_model: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{options.output}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
