"""The command `audiogen-hf`: what its options mean and what it prints. The work is done elsewhere in the library.

Nothing heavy is imported before the arguments are parsed, and bad input costs one line and exit code 2, if possible
before a model is loaded.
"""

import argparse
import logging
import math
import os
import re
import secrets
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from . import __version__
from .data.manifest import add_manifest_arguments, run_manifest
from .metrics.command import add_evaluate_arguments, run_evaluate
from .packaged_models import DEFAULT_MODEL, default_model_notice

FORMATS = ("wav", "flac", "ogg", "mp3")
DTYPES = ("float32", "float16", "bfloat16", "int8", "int4")
LAYOUTS = ("transformers", "audiocraft")
MAX_SLUG_BYTES = 80
BAD_INPUT = 2
INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Runs the command. Returns its exit code: 0, 2 for bad input, 130 where it was interrupted."""
    args = _build_parser().parse_args(argv)
    # Threads of PyTorch spin while they wait for each other, which costs a hundredfold where another program has one
    # of the cores. Read when PyTorch is first imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        args.run(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ValueError, OSError, ImportError) as error:
        print(f"audiogen-hf {args.command}: error: {_one_line(error)}", file=sys.stderr)
        return BAD_INPUT
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, where argparse prints the usage, too."""
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}\n")


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="audiogen-hf", description="Text to sound with AudioGen.")
    parser.add_argument("--version", action="version", version=f"audiogen-hf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary, add_arguments, run in (
        ("generate", "make sounds of texts", _add_generate_arguments, run_generate),
        ("convert", "turn AudioCraft's checkpoints into this library's, or back", _add_convert_arguments, run_convert),
        ("info", "say what a model is", _add_info_arguments, run_info),
        ("evaluate", "measure how good sounds or a model are", add_evaluate_arguments, run_evaluate),
        ("manifest", "list a folder of sounds for training and evaluation", add_manifest_arguments, run_manifest),
    ):
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        add_arguments(command)
        command.set_defaults(run=run)
    return parser


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).replace("`text_encoder=`", "--text-encoder").split())


def _import_quietly():
    """Imports what runs models, without what optional packages log meanwhile and without bars of loading."""
    logging.disable(logging.WARNING)
    try:
        from transformers.utils.logging import disable_progress_bar

        from . import modeling_audiogen  # noqa: F401

        disable_progress_bar()
    finally:
        logging.disable(logging.NOTSET)


# Types of arguments


def _number(kind: type, what: str, accepts) -> Any:
    """An argparse type: a number that `accepts` holds for; `what` says so in the error."""

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if math.isnan(value) or not accepts(value):
            raise argparse.ArgumentTypeError(f"takes {what}, got {text!r}")
        return value

    return parse


_positive_int = _number(int, "a whole number of at least 1", lambda value: value >= 1)
_natural = _number(int, "a whole number of at least 0", lambda value: value >= 0)
_seed = _number(int, "a whole number from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63)
_seconds = _number(float, "seconds, more than 0", lambda value: 0 < value < math.inf)
_not_negative = _number(float, "a number of at least 0", lambda value: 0 <= value < math.inf)
_probability = _number(float, "a number above 0 and up to 1", lambda value: 0 < value <= 1)
_finite = _number(float, "a number", math.isfinite)


# generate


GENERATE_EXAMPLES = """\
examples:
  audiogen-hf generate "a dog barks" "rain on a tin roof" --duration 5 --seed 0 --output sounds
  audiogen-hf generate "and then it howls" --continue-from sounds/a-dog-barks_1_seed0.wav --duration 8
  audiogen-hf generate --prompts-file prompts.txt --num-samples 4 --format flac --output sounds
"""


def _add_generate_arguments(parser: argparse.ArgumentParser):
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, GENERATE_EXAMPLES
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what to hear, such as 'a dog barks'")
    parser.add_argument("--prompts-file", metavar="FILE", help="file with a prompt a line; - for standard input")
    parser.add_argument(
        "--model",
        help=f"Hub id or folder, of this library or AudioCraft (default: {DEFAULT_MODEL}, which is in the package)",
    )
    parser.add_argument(
        "--text-encoder",
        metavar="MODEL",
        help="for AudioCraft's layout: Hub id or folder, in place of the one it names",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(),
        metavar="PATH",
        help="folder for the sounds, or for one sound a file such as dog.flac (default: the current folder)",
    )
    parser.add_argument("--format", choices=FORMATS, help="default: wav, or as the file of --output says")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")

    sound = parser.add_argument_group("the sound")
    sound.add_argument(
        "--duration", type=_seconds, metavar="S", help="seconds, a continued sound included (default: the model's, 5)"
    )
    sound.add_argument("--negative", metavar="PROMPT", help="what not to hear")
    sound.add_argument("--continue-from", metavar="FILE", help="sound to continue, with or without a prompt")
    sound.add_argument(
        "--num-samples", type=_positive_int, default=1, metavar="N", help="sounds a prompt (default: 1)"
    )
    sound.add_argument(
        "--seed",
        type=_seed,
        metavar="N",
        help="sample n of a prompt, from 0, is drawn with seed N + n (default: random)",
    )

    sampling = parser.add_argument_group("sampling", "Defaults are the model's own.")
    sampling.add_argument("--guidance-scale", type=_finite, metavar="X", help="how strictly to follow the prompt")
    sampling.add_argument("--temperature", type=_not_negative, metavar="X", help="above 1 wilder, below 1 tamer")
    sampling.add_argument("--top-k", type=_natural, metavar="N", help="draw from the N likeliest codes; 0: from all")
    sampling.add_argument(
        "--top-p", type=_probability, metavar="P", help="draw from the likeliest codes of probability P instead"
    )
    sampling.add_argument("--greedy", action="store_true", help="take the likeliest code, draw nothing")
    sampling.add_argument(
        "--extend-stride", type=_seconds, metavar="S", help="seconds by which the window moves in long sounds"
    )

    machine = parser.add_argument_group("the machine")
    machine.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: the GPU, if there is one)")
    machine.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the transformer (default: float16 on a GPU, else float32); int8 and int4 on a CPU",
    )
    machine.add_argument(
        "--batch-size", type=_positive_int, default=4, metavar="N", help="sounds at once (default: 4)"
    )
    machine.add_argument("--quiet", action="store_true", help="no progress bar, and no word on the default model")


class Take(NamedTuple):
    """One sound to make. A prompt of `None` describes nothing."""

    prompt: str | None
    seed: int
    path: Path


def run_generate(args: argparse.Namespace):
    """Makes sounds and prints the paths of their files, each as soon as it is written.

    Raises:
        ValueError, OSError: The input is bad, or the model cannot be had.
    """
    # 1. What can be wrong before a model is loaded.
    takes = _plan_takes(args, _read_prompts(args))
    sound = sampling_rate = None
    if args.continue_from is not None:
        from .audio_utils import read_audio

        sound, sampling_rate = read_audio(args.continue_from, mono=False)

    # 2. The model.
    _import_quietly()
    import torch

    device, dtype = _device_and_dtype(args)
    if args.model is None:
        args.model = DEFAULT_MODEL
        if not args.quiet:
            print(default_model_notice("--model facebook/audiogen-medium"), file=sys.stderr)
    model, processor = _load_model(args.model, args.text_encoder, device, dtype)
    if device.type == "cpu" and dtype != "float16":
        from .cpu_inference import optimize_for_cpu

        optimize_for_cpu(model, dtype)
    options = _generation_options(args)

    # 3. Sounds, a batch at a time. A generator of its own makes each independent of the others.
    for start in range(0, len(takes), args.batch_size):
        batch = takes[start : start + args.batch_size]
        inputs = processor(
            text=[take.prompt for take in batch],
            negative_text=args.negative,
            audio=[sound] * len(batch) if sound is not None else None,
            sampling_rate=sampling_rate,
        )
        try:
            audio = model.generate(
                **inputs,
                **options,
                generator=[torch.Generator().manual_seed(take.seed) for take in batch],
                progress=not args.quiet,
            )
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{device} has too little memory for {len(batch)} sounds at once: choose a smaller --batch-size or "
                "--duration"
            ) from error
        for take, samples in zip(batch, audio, strict=True):
            processor.save_audio(take.path, samples, metadata=_metadata(args, take, options, model, dtype))
            print(take.path, flush=True)


def _read_prompts(args: argparse.Namespace) -> list[str | None]:
    prompts = list(args.prompts)
    if args.prompts_file == "-":
        prompts += _lines(sys.stdin.read())
    elif args.prompts_file is not None:
        try:
            prompts += _lines(Path(args.prompts_file).read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ValueError(f"--prompts-file {args.prompts_file} is no UTF-8 text") from error
    if any(not prompt.strip() for prompt in prompts):
        raise ValueError("a prompt is empty")
    if not prompts and args.continue_from is not None:
        return [None]
    if not prompts:
        raise ValueError("no prompt: name what to hear, such as 'a dog barks', or pass --prompts-file")
    return prompts


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _plan_takes(args: argparse.Namespace, prompts: list[str | None]) -> list[Take]:
    """What to make and where to put it. A prompt that is given again gets further samples."""
    if args.greedy and (args.num_samples > 1 or len(set(prompts)) < len(prompts)):
        raise ValueError("--greedy makes the same sound of a prompt each time: ask for one")
    first_seed = args.seed if args.seed is not None else secrets.randbelow(2**32)
    into_file = args.output.suffix[1:].lower() in FORMATS and not args.output.is_dir()
    format = args.format or (args.output.suffix[1:].lower() if into_file else "wav")
    if into_file and (len(prompts) * args.num_samples > 1 or format != args.output.suffix[1:].lower()):
        raise ValueError(f"--output {args.output} is one {args.output.suffix[1:]} file: name a folder for the sounds")

    takes = []
    samples_of_prompt, files_of_slug = Counter(), Counter()
    for prompt in prompts:
        for _ in range(args.num_samples):
            seed = first_seed + samples_of_prompt[prompt]
            samples_of_prompt[prompt] += 1
            slug = _slug(prompt if prompt is not None else Path(args.continue_from).stem)
            files_of_slug[slug] += 1
            path = args.output if into_file else args.output / f"{slug}_{files_of_slug[slug]}_seed{seed}.{format}"
            takes.append(Take(prompt, seed, path))
    _check_places([take.path for take in takes], args.overwrite)
    return takes


def _slug(text: str) -> str:
    """A file name that says a prompt: its letters and digits in lower case, joined by hyphens."""
    slug = re.sub(r"[\W_]+", "-", text.lower()).encode()[:MAX_SLUG_BYTES].decode(errors="ignore").strip("-")
    return slug or "sound"


def _check_places(paths: list[Path], overwrite: bool):
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        others = f" and {len(existing) - 1} more exist" if len(existing) > 1 else " exists"
        raise ValueError(f"{existing[0]}{others}: pass --overwrite, or another --seed or --output")
    folder = paths[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise ValueError(f"cannot write to the folder {folder}")


def _device_and_dtype(args: argparse.Namespace):
    import torch

    if args.device is None:
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    else:
        try:
            device = torch.device(args.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"--device {args.device} cannot be used: {str(error).splitlines()[0]}") from error
    dtype = args.dtype or ("float32" if device.type == "cpu" else "float16")
    if dtype.startswith("int") and device.type != "cpu":
        raise ValueError(f"--dtype {dtype} is for --device cpu, this is {device}")
    return device, dtype


def _load_model(name: str, text_encoder: str | None, device, dtype: str):
    from .modeling_audiogen import AudioGenForConditionalGeneration
    from .processing_audiogen import AudioGenProcessor

    weights = "bfloat16" if dtype.startswith("int") else dtype
    try:
        model = AudioGenForConditionalGeneration.from_pretrained(name, text_encoder=text_encoder, dtype=weights)
        processor = AudioGenProcessor.from_pretrained(name, text_encoder=text_encoder)
    except (ValueError, OSError) as error:
        raise ValueError(_cannot_load(name, error)) from error
    return model.to(device), processor


def _cannot_load(name: str, error: Exception) -> str:
    message = f"cannot load {name}: {str(error).splitlines()[0]}"
    if os.path.exists(name) or "/" not in name:
        return message
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        return f"cannot load {name}: there is no such folder"
    return (
        f"{message} With a network it is fetched from the Hub, or beforehand by `hf download {name}`; without one, "
        "pass --model FOLDER."
    )


def _generation_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the user chose, under the names of `generate`; the rest is the model's."""
    options = {
        "audio_length_in_s": args.duration,
        "guidance_scale": args.guidance_scale,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "do_sample": False if args.greedy else None,
        "extend_stride": args.extend_stride,
    }
    return {name: value for name, value in options.items() if value is not None}


def _metadata(args: argparse.Namespace, take: Take, options: dict[str, Any], model, dtype: str) -> dict[str, Any]:
    """What a file says of how it was made."""
    defaults = model.generation_config.to_dict()
    names = ("do_sample", "guidance_scale", "temperature", "top_k", "top_p")
    if args.top_p is not None:  # it replaces top-k
        names = ("do_sample", "guidance_scale", "temperature")
    return {
        "prompt": take.prompt,
        "negative_prompt": args.negative,
        "continued_from": args.continue_from,
        "model_id": args.model,
        "seed": take.seed,
        "dtype": dtype,
        **{name: defaults.get(name) for name in names},
        **options,
        "library": f"audiogen_hf {__version__}",
    }


# convert


def _add_convert_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("source", metavar="SOURCE", help="Hub id or folder to read")
    parser.add_argument("target", metavar="TARGET", type=Path, help="folder to write, new or empty")
    parser.add_argument("--to", choices=LAYOUTS, help="layout to write (default: the one that SOURCE has not)")
    parser.add_argument("--revision", help="branch, tag or commit of SOURCE on the Hub")
    parser.add_argument(
        "--text-encoder",
        metavar="MODEL",
        help="Hub id or folder in place of the text encoder that SOURCE names; to AudioCraft: the name to write",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="to AudioCraft: of the transformer (default: float32)"
    )
    parser.add_argument("--push-to-hub", metavar="REPO", help="also upload TARGET to this repository, made if missing")


def run_convert(args: argparse.Namespace):
    """Converts a checkpoint and prints where it lies.

    Raises:
        ValueError, OSError: The source cannot be read or the target not written, or the Hub refuses.
    """
    if args.target.exists() and (not args.target.is_dir() or any(args.target.iterdir())):
        raise ValueError(f"TARGET {args.target} exists: name a new or empty folder")

    _import_quietly()
    from .convert_audiocraft import (
        AudioCraftCheckpoint,
        convert_checkpoint,
        export_audiocraft,
        is_audiocraft_checkpoint,
    )

    is_audiocraft = is_audiocraft_checkpoint(args.source, revision=args.revision)
    source_layout, other_layout = ("audiocraft", "transformers") if is_audiocraft else ("transformers", "audiocraft")
    layout = args.to or other_layout
    if layout == source_layout:
        raise ValueError(f"SOURCE {args.source} is in the layout of {layout} already")
    if is_audiocraft:
        checkpoint = AudioCraftCheckpoint(args.source, text_encoder=args.text_encoder, revision=args.revision)
        config = checkpoint.config()
        convert_checkpoint(checkpoint, args.target)
    else:
        model = _load_to_export(args.source, args.revision, args.dtype)
        config = model.config
        export_audiocraft(model, args.target, text_encoder=args.text_encoder)
    print(args.target)
    if args.push_to_hub is not None:
        print(_upload(args.target, config, args.push_to_hub, layout))


def _load_to_export(name: str, revision: str | None, dtype: str):
    import torch

    from .modeling_audiogen import AudioGenForConditionalGeneration

    revision = {"revision": revision} if revision is not None else {}
    try:
        return AudioGenForConditionalGeneration.from_pretrained(name, dtype=getattr(torch, dtype), **revision)
    except (ValueError, OSError) as error:
        raise ValueError(_cannot_load(name, error)) from error


def _upload(folder: Path, config, repo_id: str, layout: str) -> str:
    """Uploads a folder with a card that names the repository; the address of the commit."""
    from huggingface_hub import HfApi

    from .model_card import write_model_card_for_upload

    api = HfApi()
    repo_id = api.create_repo(repo_id, exist_ok=True).repo_id
    write_model_card_for_upload(folder, config, repo_id, library_name=layout)
    return api.upload_folder(folder_path=folder, repo_id=repo_id, commit_message="Upload model").commit_url


# info


def _add_info_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("model", metavar="MODEL", help="Hub id or folder, of this library or AudioCraft")
    parser.add_argument("--revision", help="branch, tag or commit of MODEL on the Hub")
    parser.add_argument(
        "--text-encoder",
        metavar="MODEL",
        help="for AudioCraft's layout: Hub id or folder, in place of the one it names",
    )


def run_info(args: argparse.Namespace):
    """Prints what a model is, from its configuration: its weights are not loaded.

    Raises:
        ValueError: The configuration cannot be had.
    """
    _import_quietly()
    import torch

    from .configuration_audiogen import AudioGenConfig
    from .convert_audiocraft import is_audiocraft_checkpoint
    from .modeling_audiogen import AudioGenForConditionalGeneration

    options = {name: value for name, value in vars(args).items() if name in ("revision", "text_encoder") and value}
    try:
        is_audiocraft = is_audiocraft_checkpoint(args.model, **options)
        config = AudioGenConfig.from_pretrained(args.model, **options)
    except (ValueError, OSError) as error:
        raise ValueError(_cannot_load(args.model, error)) from error
    with torch.device("meta"):
        model = AudioGenForConditionalGeneration(config)

    decoder, text_encoder = config.decoder, config.text_encoder
    _print_table(
        ("model", args.model),
        ("layout", "AudioCraft" if is_audiocraft else "transformers"),
        ("licence", config.license or "not stated"),
        ("made from", config.base_model or "not stated"),
        ("sound", f"{('mono', 'stereo')[decoder.audio_channels - 1]}, {config.sampling_rate} Hz"),
        ("window", f"{config.segment_duration:g} s"),
        ("codes", f"{decoder.num_codebooks} codebooks of {decoder.vocab_size}, {config.frame_rate} a second"),
        ("delays", " ".join(map(str, decoder.codebook_delays))),
        ("decoder", _layers(decoder.num_hidden_layers, decoder.hidden_size, decoder.num_attention_heads)),
        (
            "text encoder",
            f"{text_encoder.name_or_path or text_encoder.model_type}: "
            + _layers(text_encoder.num_hidden_layers, text_encoder.hidden_size, text_encoder.num_attention_heads),
        ),
    )
    parts = {
        "decoder": (model.decoder, model.enc_to_dec_proj, model.lm_head),
        "text encoder": (model.text_encoder,),
        "tokenizer": (model.audio_encoder,),
    }
    counts = {
        name: sum(parameter.numel() for module in modules for parameter in module.parameters())
        for name, modules in parts.items()
    }
    print()
    _print_table(
        ("", "parameters", "float32", "float16"),
        *((name, f"{count:,}", *_sizes(count)) for name, count in [*counts.items(), ("in all", sum(counts.values()))]),
    )


def _layers(layers: int, width: int, heads: int) -> str:
    return f"{layers} layers of width {width}, {heads} heads"


def _sizes(parameters: int) -> tuple[str, str]:
    """Bytes in float32 and float16, in a unit that suits."""

    def size(num_bytes: float) -> str:
        for unit in ("B", "kB", "MB"):
            if num_bytes < 1000:
                return f"{num_bytes:.3g} {unit}"
            num_bytes /= 1000
        return f"{num_bytes:.2f} GB"

    return size(4 * parameters), size(2 * parameters)


def _print_table(*rows: tuple[str, ...]):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for name, *cells in rows:
        align = str.rjust if len(cells) > 1 else str.ljust
        print("  ".join([name.ljust(widths[0]), *map(align, cells, widths[1:])]).rstrip())
