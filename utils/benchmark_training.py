"""Clips a second and model FLOP utilisation of a training step, beside the same step on transformers' MusicGen.

    python utils/benchmark_training.py --scale small
    python utils/benchmark_training.py --scale medium --batch_size 16 --dtype bfloat16 --compile

A step is forward, backward, clipping and AdamW on random codes and text states; encoders are left out, as with a token
cache. Each implementation runs in a process of its own, in turn, `--rounds` times; the fastest step counts.
Utilisation is the FLOPs that the model needs (recomputed ones not counted) over what a large matrix product reaches on
this device, or over `--peak_tflops`. Prints a table, then one line of JSON.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import time
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import EncodecConfig, MusicgenDecoderConfig, MusicgenForCausalLM, PreTrainedModel, T5Config

from audiogen_hf import AudioGenConfig, AudioGenForConditionalGeneration
from audiogen_hf.configuration_audiogen import MODEL_SCALES
from audiogen_hf.delay_pattern import apply_delay_pattern
from audiogen_hf.training.lm.model import LanguageModel

VOCAB_SIZE, NUM_CODEBOOKS, FRAME_RATE, TEXT_WIDTH = 2048, 4, 50, 1024
DELAYS = range(NUM_CODEBOOKS)


@dataclass(frozen=True)
class Setting:
    """What is measured; see the options."""

    scale: str
    batch_size: int
    seconds: float
    text_tokens: int
    steps: int
    dtype: str
    compile: bool
    gradient_checkpointing: bool

    @property
    def num_frames(self) -> int:
        return int(self.seconds * FRAME_RATE)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class MusicgenLanguageModel(nn.Module):
    """MusicGen's decoder with AudioGen's sizes, delay and loss: its own `labels` train without the delay."""

    def __init__(self, scale: str):
        super().__init__()
        sizes = MODEL_SCALES[scale]
        config = MusicgenDecoderConfig(
            vocab_size=VOCAB_SIZE,
            num_codebooks=NUM_CODEBOOKS,
            hidden_size=sizes["hidden_size"],
            num_hidden_layers=sizes["num_hidden_layers"],
            num_attention_heads=sizes["num_attention_heads"],
            ffn_dim=4 * sizes["hidden_size"],
            dropout=0.0,
        )
        self.lm = MusicgenForCausalLM._from_config(config, attn_implementation="sdpa")
        self.enc_to_dec_proj = nn.Linear(TEXT_WIDTH, sizes["hidden_size"])

    @property
    def decoder(self) -> PreTrainedModel:
        return self.lm.model.decoder

    def forward(self, text_states, attention_mask, labels) -> torch.Tensor:
        num_frames = labels.shape[-1]
        columns = apply_delay_pattern(labels, DELAYS, VOCAB_SIZE)[..., :num_frames]
        logits = self.lm(
            input_ids=columns.flatten(0, 1),
            encoder_hidden_states=self.enc_to_dec_proj(text_states),
            encoder_attention_mask=attention_mask,
            use_cache=False,
        ).logits  # (B * K, T, V)
        targets = apply_delay_pattern(labels, DELAYS, -100)[..., 1 : num_frames + 1]
        per_codebook = [
            F.cross_entropy(
                logits.unflatten(0, (-1, NUM_CODEBOOKS))[:, k].flatten(0, 1).float(), targets[:, k].flatten()
            )
            for k in range(NUM_CODEBOOKS)
        ]
        return torch.stack(per_codebook).mean()


class AudiogenLanguageModel(nn.Module):
    """This library's, as its trainer uses it."""

    def __init__(self, scale: str):
        super().__init__()
        config = AudioGenConfig(
            # Encoders of next to no size; the step does not run them.
            text_encoder=T5Config(d_model=TEXT_WIDTH, num_layers=1, d_ff=1, num_heads=1, vocab_size=2).to_dict(),
            audio_encoder=EncodecConfig(
                codebook_size=VOCAB_SIZE, num_filters=4, upsampling_ratios=[8, 5, 4, 2], sampling_rate=16000,
                target_bandwidths=[2.2],
            ).to_dict(),
            decoder={**MODEL_SCALES[scale], "vocab_size": VOCAB_SIZE, "num_codebooks": NUM_CODEBOOKS},
        )  # fmt: skip
        self.lm = LanguageModel(AudioGenForConditionalGeneration(config))

    @property
    def decoder(self) -> PreTrainedModel:
        return self.lm.decoder

    def forward(self, text_states, attention_mask, labels) -> torch.Tensor:
        return self.lm(text_states, attention_mask, labels)[0]


IMPLEMENTATIONS = {"audiogen_hf": AudiogenLanguageModel, "transformers MusicGen": MusicgenLanguageModel}


def measure(name: str, setting: Setting) -> dict[str, float]:
    """Seconds a step (the fastest), trained parameters, and peak memory in GB."""
    torch.manual_seed(0)
    device = setting.device
    model = IMPLEMENTATIONS[name](setting.scale).to(device).train()
    if setting.gradient_checkpointing:
        model.decoder.activation_checkpointing_enable()
    if setting.compile:
        for layer in model.decoder.layers:
            layer.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")
    batch = {
        "text_states": torch.randn(setting.batch_size, setting.text_tokens, TEXT_WIDTH, device=device),
        "attention_mask": torch.ones(setting.batch_size, setting.text_tokens, dtype=torch.long, device=device),
        "labels": torch.randint(VOCAB_SIZE, (setting.batch_size, NUM_CODEBOOKS, setting.num_frames), device=device),
    }
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=setting.dtype == "bfloat16")

    seconds = []
    for _ in range(setting.steps + 1):  # the first one, which compiles and allocates, does not count
        start = time.perf_counter()
        with autocast:
            loss = model(**batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": min(seconds[1:]),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gigabytes": memory / 1e9,
    }


def step_flops(setting: Setting) -> float:
    """FLOPs of a training step: three times those of the forward pass, a multiplication and an addition being two."""
    sizes = MODEL_SCALES[setting.scale]
    width, layers, frames, text = (
        sizes["hidden_size"],
        sizes["num_hidden_layers"],
        setting.num_frames,
        setting.text_tokens,
    )
    # Of a position: queries, keys, values and output; query and output of cross-attention; the feed-forward.
    per_position = (4 + 2 + 8) * width**2
    per_layer = frames * per_position + text * 2 * width**2  # and keys and values of the text
    attention = frames * (frames / 2 + text) * 2 * width  # scores and their weighted sum; half of a causal square
    heads = frames * NUM_CODEBOOKS * VOCAB_SIZE * width + text * TEXT_WIDTH * width
    return 3 * 2 * setting.batch_size * (layers * (per_layer + attention) + heads)


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    first, second = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        (first @ second)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", default="small", choices=list(MODEL_SCALES))
    parser.add_argument("--batch_size", type=int, default=1, help="clips a step (default: 1)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a clip (default: 10)")
    parser.add_argument("--text_tokens", type=int, default=16, help="of a description (default: 16)")
    parser.add_argument("--steps", type=int, default=3, help="steps a round, besides the first (default: 3)")
    parser.add_argument("--rounds", type=int, default=2, help="(default: 2)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="bfloat16: by autocast")
    parser.add_argument("--compile", action="store_true", help="compile the layers")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--peak_tflops", type=float, help="of the device; default: measured by a matrix product")
    args = parser.parse_args()
    fields = Setting.__dataclass_fields__
    setting = Setting(**{name: value for name, value in vars(args).items() if name in fields})

    # 1. Measure
    peak = args.peak_tflops * 1e12 if args.peak_tflops else matmul_flops(setting.device, getattr(torch, args.dtype))
    rounds: dict[str, list[dict]] = {name: [] for name in IMPLEMENTATIONS}
    for _ in range(args.rounds):
        for name in IMPLEMENTATIONS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # its own process: its own peak of memory
                rounds[name].append(pool.apply(measure, (name, setting)))

    # 2. Tell
    results = {}
    for name, measured in rounds.items():
        best = min(measured, key=lambda result: result["seconds"])
        results[name] = {
            "clips_per_second": setting.batch_size / best["seconds"],
            "mfu": step_flops(setting) / best["seconds"] / peak,
            "gigabytes": best["gigabytes"],
            "parameters": best["parameters"],
        }
    print("| | clips/s | MFU | peak memory, GB | parameters, M |\n|---|---|---|---|---|")
    for name, result in results.items():
        print(
            f"| {name} | {result['clips_per_second']:.4f} | {result['mfu']:.1%} | {result['gigabytes']:.1f} | "
            f"{result['parameters'] / 1e6:.0f} |"
        )
    device = torch.cuda.get_device_name() if setting.device.type == "cuda" else platform.processor() or "cpu"
    context = {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({**asdict(setting), **context, "peak_tflops": peak / 1e12, "results": results}))


if __name__ == "__main__":
    main()
