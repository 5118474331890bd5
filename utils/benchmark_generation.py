"""Seconds per decoding step beside the speed of memory and transformers' MusicGen of the same shape, in one run.

    python utils/benchmark_generation.py --scale medium --batch-sizes 1 16 --durations 5

Every path decodes in turn, round after round, so that what else the machine does falls on all of them alike. Weights
are random: they cost what trained ones cost. Prints a table, then one JSON line.
"""

import argparse
import gc
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

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

# Not in the loop, and small here: what is compared is the decoder.
CODEC_FILTERS = 4
TEXT_ENCODER = {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 1000}
TEXT_LENGTH = 12  # tokens of a usual description
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5 + 4 / 128}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Path:
    """One way to generate, and what was measured of it."""

    name: str
    precision: str
    generate: Callable[[dict, int], torch.Tensor]
    weight_bytes: float
    load_seconds: float
    step_seconds: list[float] = field(default_factory=list)
    first_sound: list[float] = field(default_factory=list)
    durations: dict[float, float] = field(default_factory=dict)


def build_audiogen(scale: str, dtype: torch.dtype, device: str) -> AudioGenForConditionalGeneration:
    config = AudioGenConfig(text_encoder=TEXT_ENCODER, decoder=AudioGenDecoderConfig.from_scale(scale).to_dict())
    config.audio_encoder.num_filters = CODEC_FILTERS
    return _materialise(AudioGenForConditionalGeneration, config, dtype, device)


def build_musicgen(scale: str, dtype: torch.dtype, device: str) -> MusicgenForConditionalGeneration:
    shape = MODEL_SCALES[scale]
    decoder = MusicgenDecoderConfig(
        **shape, ffn_dim=4 * shape["hidden_size"], num_codebooks=4, dropout=0.0, pad_token_id=2048, bos_token_id=2048
    )
    audio_encoder = AudioGenConfig().audio_encoder
    audio_encoder.num_filters = CODEC_FILTERS
    config = MusicgenConfig(
        text_encoder=T5Config(**TEXT_ENCODER).to_dict(),
        audio_encoder=audio_encoder.to_dict(),
        decoder=decoder.to_dict(),
    )
    model = _materialise(MusicgenForConditionalGeneration, config, dtype, device)
    model.generation_config.decoder_start_token_id = model.generation_config.pad_token_id = 2048
    return model


def _materialise(model_class, config, dtype: torch.dtype, device: str):
    """A model with cheap random weights: drawing 1.8 B Gaussians would take longer than the benchmark."""
    with torch.device("meta"):
        model = model_class(config)
    model.to(dtype)
    model.audio_encoder.to(torch.float32)  # both decode sound in float32: half precision is slow on CPUs
    model.to_empty(device=device)
    noise = torch.randn(1 << 20, device=device) * 0.02
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                flat = tensor.view(-1)
                for start in range(0, flat.numel(), noise.numel()):
                    flat[start : start + noise.numel()] = noise[: flat.numel() - start]
        for _name, module in model.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
            # Buffers of transformers' convolutions that `to_empty` left undefined.
            if hasattr(module, "padding_total"):
                kernel = (module.conv.kernel_size[0] - 1) * module.conv.dilation[0] + 1
                module.stride.fill_(module.conv.stride[0])
                module.kernel_size.fill_(kernel)
                module.padding_total.fill_(kernel - module.conv.stride[0])
    if hasattr(model.decoder, "model") and hasattr(model.decoder.model.decoder, "embed_positions"):
        positions = model.decoder.model.decoder.embed_positions
        positions.make_weights(2048, config.decoder.hidden_size)
    return model.eval()


def decoder_weights(scale: str) -> int:
    """Weights that a step reads: all linear layers but those of the text's keys and values, and the heads."""
    width, layers = MODEL_SCALES[scale]["hidden_size"], MODEL_SCALES[scale]["num_hidden_layers"]
    return layers * (3 + 1 + 1 + 1 + 4 + 4) * width**2 + 4 * 2048 * width


def make_inputs(batch_size: int, device: str) -> dict:
    ids = torch.randint(2, 900, (batch_size, TEXT_LENGTH), device=device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def read_bandwidth(device: str) -> float:
    """Bytes per second of summing 1 GiB, the best of several."""
    data = torch.ones(1 << 28, device=device)
    return data.numel() * 4 / min(timed(data.sum, device) for _ in range(7))


def timed(run: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def build_paths(names: list[str], scale: str, device: str) -> list[Path]:
    """The paths of a name each: `musicgen-bfloat16`, `standard-float32`, `fast-bfloat16`, `optimized-int8`, ..."""
    paths, models = [], {}
    for name in names:
        kind, precision = name.split("-")
        start = time.perf_counter()
        if kind == "musicgen":
            model = build_musicgen(scale, DTYPES[precision], device)
        else:
            optimized = kind == "optimized"
            if (optimized, precision) not in models:
                base = build_audiogen(scale, DTYPES.get(precision, torch.bfloat16), device)
                models[optimized, precision] = optimize_for_cpu(base, precision) if optimized else base
            model = models[optimized, precision]
        load_seconds = time.perf_counter() - start
        # A request for logits is one that only the standard loop serves.
        options = {"output_logits": True, "return_dict_in_generate": True} if kind == "standard" else {}

        def generate(inputs, frames, model=model, kind=kind, options=options):
            # MusicGen gives three frames fewer than it is asked for.
            steps = frames + 3 if kind == "musicgen" else frames
            return model.generate(**inputs, max_new_tokens=steps, do_sample=True, guidance_scale=3.0, **options)

        paths.append(Path(name, precision, generate, decoder_weights(scale) * BYTES[precision], load_seconds))
    return paths


def measure(paths: list[Path], batch_size: int, frames: int, rounds: int, device: str):
    """Seconds a step, as the difference of a long and a short run, every path in turn."""
    inputs = make_inputs(batch_size, device)
    for path in paths:
        path.step_seconds, path.first_sound = [], []
        path.generate(inputs, 4)
    for _ in range(rounds):
        for path in paths:
            short = timed(lambda path=path: path.generate(inputs, 1), device)
            long = timed(lambda path=path: path.generate(inputs, 1 + frames), device)
            path.first_sound.append(short)
            path.step_seconds.append((long - short) / frames)


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
def measure_kernels(scale: str, rounds: int) -> list[dict]:
    """Milliseconds of all linear layers of a step, two rows, by each way of multiplying; on a CPU."""
    width, layers = MODEL_SCALES[scale]["hidden_size"], MODEL_SCALES[scale]["num_hidden_layers"]
    shapes = [(3 * width, width), *[(width, width)] * 3, (4 * width, width), (width, 4 * width)]
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
            inputs = {size: torch.randn(2, size, dtype=DTYPES[dtype]) for size in (width, 4 * width)}
            products = [
                partial(prepare(torch.randn(shape).mul_(0.02).to(DTYPES[dtype])), inputs[shape[1]])
                for shape in shapes * timed_layers
            ]
            seconds = min(timed(partial(_call_all, products), "cpu") for _ in range(rounds + 1))
            milliseconds = round(seconds * layers / timed_layers * 1000, 1)
            rows.append({"way": name, "activations": dtype, "milliseconds": milliseconds})
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scale", choices=MODEL_SCALES, default="medium")
    parser.add_argument(
        "--paths",
        nargs="*",
        default=["musicgen-float32", "standard-float32", "fast-float32", "optimized-float32"],
        help="musicgen, standard, fast or optimized (for CPUs), a dash, and float32, bfloat16, int8 or int4",
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--frames", type=int, default=12, help="steps timed a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--durations", type=float, nargs="*", default=[], help="seconds of sound to time as a whole")
    parser.add_argument("--kernels", action="store_true", help="time the linear layers alone, too; on a CPU")
    parser.add_argument("--components", action="store_true", help="time the text encoder and the tokenizer, too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    bandwidth = read_bandwidth(args.device)
    paths = build_paths(args.paths, args.scale, args.device)
    gc.collect()
    report = {
        "scale": args.scale,
        "device": args.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "read_gb_per_s": round(bandwidth / 1e9, 1),
        "rows": [],
    }
    print(f"{args.scale}, {args.device}, {torch.get_num_threads()} threads, reads at {bandwidth / 1e9:.1f} GB/s")
    print("| path | batch | s a step | limit s | of limit | against MusicGen | s a step and prompt | first sound s |")
    print("|---|---|---|---|---|---|---|---|")
    for batch_size in args.batch_sizes:
        measure(paths, batch_size, args.frames, args.rounds, args.device)
        peers = {path.precision: statistics.median(path.step_seconds) for path in paths if "musicgen" in path.name}
        for path in paths:
            step = statistics.median(path.step_seconds)
            peer = peers.get(path.precision, peers.get("bfloat16"))
            row = {
                "path": path.name,
                "batch_size": batch_size,
                "step_s": round(step, 4),
                "limit_s": round(path.weight_bytes / bandwidth, 4),
                "of_limit": round(path.weight_bytes / bandwidth / step, 3),
                "speedup_over_musicgen": round(peer / step, 2) if peer else None,
                "step_s_a_prompt": round(step / batch_size, 4),
                "first_sound_s": round(statistics.median(path.first_sound), 3),
                "build_s": round(path.load_seconds, 1),
            }
            for seconds in args.durations:
                inputs = make_inputs(batch_size, args.device)
                frames = int(seconds * 50)
                wall = timed(
                    lambda path=path, inputs=inputs, frames=frames: path.generate(inputs, frames), args.device
                )
                row[f"real_time_factor_{seconds:g}s"] = round(wall / (seconds * batch_size), 2)
            report["rows"].append(row)
            print(
                f"| {path.name} | {batch_size} | {row['step_s']:.3f} | {row['limit_s']:.3f} | {row['of_limit']:.0%} | "
                f"{row['speedup_over_musicgen'] or '-'} | {row['step_s_a_prompt']:.4f} | {row['first_sound_s']:.2f} |",
                flush=True,
            )
    if args.kernels:
        report["kernels"] = measure_kernels(args.scale, args.rounds)
        for row in report["kernels"]:
            print(f"{row['way']}, {row['activations']}: {row['milliseconds']:.0f} ms for the layers of a step")
    if args.components:
        report["components"] = measure_components(args.device, args.rounds)
        for row in report["components"]:
            print(f"{row['component']}: {row['s']:.3f} s")
    report["peak_memory_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20), 2)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
