"""What the precisions of `optimize_for_cpu` change: cross entropy and likeliest codes on sounds, against float32.

    python utils/benchmark_precision.py --model MODEL --sounds DATASET --split test

DATASET is what training takes. Prints a table, then one JSON line.
"""

import argparse
import json
import sys

import torch

from audiogen_hf import AudioGenForConditionalGeneration, AudioGenProcessor, optimize_for_cpu
from audiogen_hf.cpu_inference import PRECISIONS
from audiogen_hf.data import ClipDataset, ClipReader, load_audio_text_dataset


def read_clips(source: str, split: str, seconds: float, sampling_rate: int) -> list[tuple[str, torch.Tensor]]:
    """A description of each sound, and some of its seconds (1, 1, N)."""
    rows = load_audio_text_dataset(source, split=split)
    clips = ClipDataset(rows, ClipReader(sampling_rate=sampling_rate, segment_duration=seconds), shuffle=False)
    return [(clip["text"], torch.from_numpy(clip["audio"])[None, None, : clip["length"]]) for clip in clips]


@torch.no_grad()
def score(model, processor, clips, codes: list[torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
    """Mean cross entropy in nats, and the likeliest code of each cell."""
    losses, likeliest = [], []
    for (text, _), labels in zip(clips, codes, strict=True):
        outputs = model(**processor(text=[text]), labels=labels)
        losses.append(float(outputs.loss))
        likeliest.append(outputs.logits.argmax(dim=-1))
    return sum(losses) / len(losses), likeliest


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="Hub id or folder")
    parser.add_argument("--text-encoder", help="for AudioCraft's layout, in place of the one it names")
    parser.add_argument("--sounds", required=True, help="sounds with descriptions, as --train_data of the examples")
    parser.add_argument("--split", default="train", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each sound")
    args = parser.parse_args(argv)

    processor = AudioGenProcessor.from_pretrained(args.model, text_encoder=args.text_encoder)
    clips = read_clips(args.sounds, args.split, args.seconds, processor.sampling_rate)
    codes, expected, rows = None, None, []
    for precision in (None, *PRECISIONS):
        model = AudioGenForConditionalGeneration.from_pretrained(args.model, text_encoder=args.text_encoder).eval()
        if precision is None:
            with torch.no_grad():
                codes = [model.encode_audio(audio) for _, audio in clips]
        else:
            optimize_for_cpu(model, precision)
        loss, likeliest = score(model, processor, clips, codes)
        if precision is None:
            base, expected = loss, likeliest
            continue
        same = sum(int((a == b).sum()) for a, b in zip(likeliest, expected, strict=True))
        total = sum(cells.numel() for cells in expected)
        rows.append(
            {
                "precision": precision,
                "cross_entropy": round(loss, 4),
                "change": round(loss - base, 5),
                "same_likeliest_code": round(same / total, 4),
            }
        )

    print(f"{len(clips)} sounds, cross entropy {base:.4f} in float32 by PyTorch's own layers")
    print("| precision | cross entropy | change | same likeliest code |\n|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['precision']} | {row['cross_entropy']:.4f} | {row['change']:+.5f} | "
            f"{row['same_likeliest_code']:.2%} |"
        )
    print(json.dumps({"model": args.model, "clips": len(clips), "cross_entropy": base, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
