"""Speed and memory of generation beside the speed of memory and transformers' MusicGen of the same shape, in one run.

    python utils/benchmark_generation.py --scale medium --batch-sizes 1 4 16 64
    python utils/benchmark_generation.py --model FOLDER --paths musicgen-float32 fast-float32 optimized-float32

Every path decodes in turn, round after round, so that what else the machine does falls on all of them alike. Loading
and memory (on a CPU: Linux only) are measured in a process of its own a path. Without `--model`, weights are random:
they cost what trained ones cost. Prints tables, then one JSON line.
"""

import argparse
import json
import multiprocessing
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import (
    EncodecModel,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)

from audiogen_hf import AudioGenConfig, AudioGenDecoderConfig, AudioGenForConditionalGeneration, optimize_for_cpu
from audiogen_hf.configuration_audiogen import MODEL_SCALES
from audiogen_hf.cpu_inference import Int4Linear, Int8Linear, PackedLinear
from audiogen_hf.generation_audiogen import default_extend_stride

# Not in the loop, and small here: what is compared is the decoder.
CODEC_FILTERS = 4
TEXT_ENCODER = {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 1000}
TEXT_LENGTH = 12  # tokens of a usual description
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5 + 4 / 128}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = ("musicgen", "standard", "fast", "optimized")


@dataclass
class Contender:
    """One way to generate, and what was measured of it."""

    name: str  # musicgen-bfloat16, standard-float32, fast-bfloat16, optimized-int8, ...
    model: nn.Module
    step_seconds: list[float] = field(default_factory=list)
    first_sound: list[float] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return self.name.split("-")[0]

    @property
    def precision(self) -> str:
        return self.name.split("-")[1]

    def generate(self, batch_size: int, frames: int, prompt_frames: int = 0) -> torch.Tensor:
        """Sounds of `frames` new frames after as many frames of random codes as `prompt_frames`."""
        model, config = self.model, self.model.config
        ids = torch.randint(2, min(config.text_encoder.vocab_size, 900), (batch_size, TEXT_LENGTH))
        request = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if prompt_frames:
            decoder = config.decoder
            codes = torch.randint(0, decoder.vocab_size, (batch_size, decoder.num_codebooks, prompt_frames))
            if self.kind == "musicgen":
                request["decoder_input_ids"] = codes.flatten(0, 1)
            else:
                request["audio_codes"] = codes
        request = {name: tensor.to(model.device) for name, tensor in request.items()}
        # A request for logits is one that only the standard loop serves.
        options = {"output_logits": True, "return_dict_in_generate": True} if self.kind == "standard" else {}
        # MusicGen gives three frames fewer than it is asked for.
        steps = frames + 3 if self.kind == "musicgen" else frames
        return model.generate(
            **request, max_new_tokens=steps, do_sample=True, top_k=250, guidance_scale=3.0, **options
        )


def same_shape_as(decoder: AudioGenDecoderConfig) -> MusicgenConfig:
    """MusicGen with a decoder of that shape, and the text encoder and tokenizer of random models."""
    audio_encoder = AudioGenConfig(decoder={"vocab_size": 2048}).audio_encoder
    audio_encoder.num_filters, audio_encoder.codebook_size = CODEC_FILTERS, decoder.vocab_size
    bits = (decoder.vocab_size - 1).bit_length()
    audio_encoder.target_bandwidths = [decoder.num_codebooks * audio_encoder.frame_rate * bits / 1000]
    musicgen_decoder = MusicgenDecoderConfig(
        hidden_size=decoder.hidden_size,
        num_hidden_layers=decoder.num_hidden_layers,
        num_attention_heads=decoder.num_attention_heads,
        ffn_dim=decoder.intermediate_size,
        vocab_size=decoder.vocab_size,
        num_codebooks=decoder.num_codebooks,
        dropout=0.0,
        pad_token_id=decoder.special_token_id,
        bos_token_id=decoder.special_token_id,
    )
    return MusicgenConfig(
        text_encoder=T5Config(**TEXT_ENCODER).to_dict(),
        audio_encoder=audio_encoder.to_dict(),
        decoder=musicgen_decoder.to_dict(),
    )


def write_random_model(model_class, config, dtype: torch.dtype, folder: Path):
    """A model with cheap random weights: drawing 1.8 B Gaussians would take longer than the benchmark."""
    with torch.device("meta"):
        model = model_class(config)
    model.to(dtype)
    model.audio_encoder.to(torch.float32)
    model.to_empty(device="cpu")
    noise = torch.randn(1 << 20) * 0.02
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                flat = tensor.view(-1)
                for start in range(0, flat.numel(), noise.numel()):
                    flat[start : start + noise.numel()] = noise[: flat.numel() - start]
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
    if model_class is MusicgenForConditionalGeneration:
        special = config.decoder.pad_token_id
        model.generation_config.decoder_start_token_id = model.generation_config.pad_token_id = special
    model.save_pretrained(folder)


def load(name: str, sources: dict[str, str], device: str) -> Contender:
    kind, precision = name.split("-")
    dtype = DTYPES.get(precision, torch.bfloat16)
    if kind == "musicgen":
        model = MusicgenForConditionalGeneration.from_pretrained(sources["musicgen"], dtype=dtype)
        model.audio_encoder.to(torch.float32)  # as ours: half precision is slow on CPUs
    else:
        model = AudioGenForConditionalGeneration.from_pretrained(sources["audiogen"], dtype=dtype)
    model.eval().to(device)
    return Contender(name, optimize_for_cpu(model, precision) if kind == "optimized" else model)


def peak_memory(device: str) -> int:
    """Bytes that this process held at most so far: resident on a CPU, allocated on a GPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    # Not `getrusage`, whose figure a process inherits from the one that started it.
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def measure_alone(name: str, sources: dict[str, str], device: str, frames: int) -> dict:
    """Loading, the first call and memory of a path; in a process that did nothing before."""
    baseline = peak_memory(device)
    contender = None

    def load_it():
        nonlocal contender
        contender = load(name, sources, device)

    load_seconds = timed(load_it, device)
    first_call = timed(lambda: contender.generate(1, 1), device)
    contender.generate(1, frames)
    return {
        "path": name,
        "load_s": round(load_seconds, 2),
        "first_sound_after_load_s": round(first_call, 3),
        "peak_memory_gib": round((peak_memory(device) - baseline) / (1 << 30), 3),
    }


def decoder_weights(decoder: AudioGenDecoderConfig) -> int:
    """Weights that a step reads: all linear layers but those of the text's keys and values, and the heads."""
    width = decoder.hidden_size
    layer = 6 * width**2 + 2 * width * decoder.intermediate_size
    return decoder.num_hidden_layers * layer + decoder.num_codebooks * decoder.vocab_size * width


def read_bandwidth(device: str) -> float:
    """Bytes per second of summing 1 GiB, the best of several."""
    data = torch.ones(1 << 28, device=device)
    return data.numel() * 4 / min(timed(data.sum, device) for _ in range(7))


def timed(run: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def measure_steps(contenders: list[Contender], batch_size: int, frames: int, rounds: int, device: str):
    """Seconds a step, as the difference of a long and a short run, every path in turn."""
    for contender in contenders:
        contender.step_seconds, contender.first_sound = [], []
        contender.generate(batch_size, 4)
    for _ in range(rounds):
        for contender in contenders:
            short = timed(lambda contender=contender: contender.generate(batch_size, 1), device)
            long = timed(lambda contender=contender: contender.generate(batch_size, 1 + frames), device)
            contender.first_sound.append(short)
            contender.step_seconds.append((long - short) / frames)


@dataclass
class Growth:
    """What time depends on beside the batch, measured for one prompt."""

    step_seconds_a_column: float  # a step later in the sound reads more keys and values
    prompt_seconds_a_column: float  # reading the codes that a window shares with the one before
    steps: int  # that were timed


def measure_growth(contender: Contender, window: int, frames: int, rounds: int, device: str) -> Growth:
    late = window - frames - 1
    slopes, prompts = [], []
    for _ in range(rounds):
        short, long, late_short, late_long = (
            timed(lambda count=count, prompt=prompt: contender.generate(1, count, prompt), device)
            for prompt in (0, late)
            for count in (1, 1 + frames)
        )
        slopes.append(((late_long - late_short) - (long - short)) / frames / late)
        prompts.append((late_short - short) / late)
    return Growth(max(statistics.median(slopes), 0.0), max(statistics.median(prompts), 0.0), 2 * rounds * frames)


def estimate(contender: Contender, batch_size: int, frames: int, timed_frames: int, config, growth: Growth) -> float:
    """Seconds of a whole call, from its parts; see [`windows_of`]. The tokenizer's share is that of one frame."""
    step = statistics.median(contender.step_seconds)
    seconds = statistics.median(contender.first_sound)
    for shared, length in windows_of(contender, frames, config):
        middle = shared + (length - shared) / 2 - timed_frames / 2
        seconds += shared * batch_size * growth.prompt_seconds_a_column
        seconds += (length - shared) * (step + batch_size * growth.step_seconds_a_column * middle)
    return seconds


def windows_of(contender: Contender, frames: int, config: AudioGenConfig) -> list[tuple[int, int]]:
    """Frames that a window has from the one before, and frames in all, of each; MusicGen decodes all in one."""
    window = int(config.segment_duration * config.frame_rate)
    if contender.kind == "musicgen" or frames <= window:
        return [(0, frames)]
    stride = int(default_extend_stride(config) * config.frame_rate)
    windows = [(0, window)]
    for offset in range(stride, frames - window + stride, stride):
        windows.append((window - stride, min(window, frames - offset)))
    return windows


def measure_components(device: str, rounds: int) -> list[dict]:
    """What runs once a call, at the sizes of `facebook/audiogen-medium`: T5-large and the 16 kHz EnCodec decoder."""
    config = AudioGenConfig().audio_encoder
    codec = EncodecModel(config).eval().to(device)
    text_encoder = T5EncoderModel(T5Config(d_model=1024, d_kv=64, d_ff=4096, num_layers=24, num_heads=16)).eval()
    text_encoder.to(device)
    rows = []

    def add(name: str, run: Callable[[], object]):
        with torch.inference_mode():
            run()
            rows.append({"component": name, "s": round(min(timed(run, device) for _ in range(rounds)), 3)})

    ids = torch.randint(2, 900, (1, TEXT_LENGTH), device=device)
    add(f"T5-large, {TEXT_LENGTH} tokens", lambda: text_encoder(input_ids=ids))
    for seconds in (5, 10, 30):
        codes = torch.randint(0, config.codebook_size, (1, 1, 4, seconds * config.frame_rate), device=device)
        add(f"EnCodec decoder, {seconds} s of sound", lambda codes=codes: codec.decode(codes, [None]))
    return rows


def _call_all(functions: list[Callable[[], object]]):
    for function in functions:
        function()


@torch.no_grad()
def measure_kernels(decoder: AudioGenDecoderConfig, rounds: int) -> list[dict]:
    """Milliseconds of all linear layers of a step, two rows, by each way of multiplying; on a CPU."""
    width, inner, layers = decoder.hidden_size, decoder.intermediate_size, decoder.num_hidden_layers
    shapes = [(3 * width, width), *[(width, width)] * 3, (inner, width), (width, inner)]
    timed_layers = 4  # distinct weights, more than caches hold
    rows = []
    for name, prepare, dtypes in (
        ("nn.functional.linear", lambda weight: partial(nn.functional.linear, weight=weight), ("float32", "bfloat16")),
        ("weight @ x.T", lambda weight: lambda x: torch.mm(weight, x.t()), ("float32", "bfloat16")),
        ("PackedLinear", PackedLinear, ("float32", "bfloat16")),
        ("Int8Linear", Int8Linear, ("bfloat16",)),
        ("Int4Linear", Int4Linear, ("bfloat16",)),
    ):
        for dtype in dtypes:
            if prepare is PackedLinear and not PackedLinear.is_available(DTYPES[dtype]):
                continue
            inputs = {size: torch.randn(2, size, dtype=DTYPES[dtype]) for size in (width, inner)}
            products = [
                partial(prepare(torch.randn(shape).mul_(0.02).to(DTYPES[dtype])), inputs[shape[1]])
                for shape in shapes * timed_layers
            ]
            seconds = min(timed(partial(_call_all, products), "cpu") for _ in range(rounds + 1))
            milliseconds = round(seconds * layers / timed_layers * 1000, 1)
            rows.append({"way": name, "activations": dtype, "milliseconds": milliseconds})
    return rows


def print_table(rows: list[dict]):
    """Rows of the same keys as Markdown."""
    print("\n| " + " | ".join(name.replace("_", " ") for name in rows[0]) + " |")
    print("|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join("-" if value is None else str(value) for value in row.values()) + " |", flush=True)


def parse_path(name: str) -> str:
    kind, _, precision = name.partition("-")
    if kind not in KINDS or precision not in BYTES or (kind != "optimized" and precision not in DTYPES):
        raise argparse.ArgumentTypeError(
            f"takes {', '.join(KINDS)}, a dash and float32, bfloat16 or float16 (for optimized int8 and int4, too), "
            f"got {name!r}"
        )
    return name


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--scale", choices=MODEL_SCALES, default="medium", help="random weights of this shape")
    model.add_argument("--model", help="a folder or Hub id; durations are then measured whole")
    parser.add_argument(
        "--paths",
        nargs="*",
        type=parse_path,
        default=["musicgen-float32", "standard-float32", "fast-float32", "optimized-float32"],
        help="musicgen, standard, fast or optimized (for CPUs), a dash, and float32, bfloat16, int8 or int4",
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--frames", type=int, default=12, help="steps timed a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--durations", type=float, nargs="*", default=[5, 10, 30], help="seconds of sound")
    parser.add_argument("--whole", action="store_true", help="measure durations whole, rather than estimate them")
    parser.add_argument("--kernels", action="store_true", help="time the linear layers alone, too; on a CPU")
    parser.add_argument("--components", action="store_true", help="time the text encoder and the tokenizer, too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    if args.model is None:
        decoder = AudioGenDecoderConfig.from_scale(args.scale)
        config = AudioGenConfig(text_encoder=TEXT_ENCODER, decoder=decoder.to_dict())
        config.audio_encoder.num_filters = CODEC_FILTERS
    else:
        config = AudioGenConfig.from_pretrained(args.model)
        decoder = config.decoder

    bandwidth = read_bandwidth(args.device)
    report = {
        "model": args.model or args.scale,
        "device": args.device if args.device == "cpu" else torch.cuda.get_device_name(args.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "read_gb_per_s": round(bandwidth / 1e9, 1),
    }
    print(", ".join(f"{name} {value}" for name, value in report.items()))
    with tempfile.TemporaryDirectory() as folder:
        # 1. Models on disk.
        sources = {"audiogen": args.model or f"{folder}/audiogen", "musicgen": f"{folder}/musicgen"}
        wide = any("float32" in name for name in args.paths)
        dtype = torch.float32 if wide else torch.bfloat16
        if args.model is None and any("musicgen" not in name for name in args.paths):
            write_random_model(AudioGenForConditionalGeneration, config, dtype, sources["audiogen"])
        if any("musicgen" in name for name in args.paths):
            peer_config = same_shape_as(decoder)
            write_random_model(MusicgenForConditionalGeneration, peer_config, dtype, sources["musicgen"])

        # 2. Each path alone.
        spawn = multiprocessing.get_context("spawn")
        report["alone"] = []
        for name in args.paths:
            with ProcessPoolExecutor(1, mp_context=spawn) as process:
                alone = process.submit(measure_alone, name, sources, args.device, args.frames)
                report["alone"].append(alone.result())
        if args.paths:
            print_table(report["alone"])

        # 3. All of them in turn.
        contenders = [load(name, sources, args.device) for name in args.paths]

    growth = {}
    if args.durations and not (args.whole or args.model):
        window = int(config.segment_duration * config.frame_rate)
        growth = {c.name: measure_growth(c, window, args.frames, args.rounds, args.device) for c in contenders}
    report["rows"] = []
    for batch_size in args.batch_sizes:
        measure_steps(contenders, batch_size, args.frames, args.rounds, args.device)
        steps = {contender.name: statistics.median(contender.step_seconds) for contender in contenders}
        rows = []
        for contender in contenders:
            step = steps[contender.name]
            limit = decoder_weights(decoder) * BYTES[contender.precision] / bandwidth
            peer = steps.get(f"musicgen-{contender.precision}", steps.get("musicgen-bfloat16"))
            rows.append(
                {
                    "path": contender.name,
                    "batch_size": batch_size,
                    "step_s": round(step, 4),
                    "limit_s": round(limit, 4),
                    "of_limit": round(limit / step, 3),
                    "speedup_over_musicgen": round(peer / step, 2) if peer else None,
                    "step_s_a_prompt": round(step / batch_size, 4),
                    "first_sound_s": round(statistics.median(contender.first_sound), 3),
                }
            )
            if args.durations:
                timed_steps = args.rounds * args.frames + growth[contender.name].steps if growth else None
                rows[-1]["durations"] = f"estimated from {timed_steps} steps" if growth else "measured whole"
            for seconds in args.durations:
                frames = int(seconds * config.frame_rate)
                if growth:
                    took = estimate(contender, batch_size, frames, args.frames, config, growth[contender.name])
                else:
                    took = timed(partial(contender.generate, batch_size, frames), args.device)
                rows[-1][f"{seconds:g}_s_of_sound_s"] = round(took, 3)
                # Seconds of computing a second of sound: below 1 is faster than real time.
                rows[-1][f"real_time_factor_{seconds:g}s"] = round(took / (seconds * batch_size), 3)
        print_table(rows)
        report["rows"] += rows
    if args.kernels:
        report["kernels"] = measure_kernels(decoder, args.rounds)
        print_table(report["kernels"])
    if args.components:
        report["components"] = measure_components(args.device, args.rounds)
        print_table(report["components"])
    print()
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
