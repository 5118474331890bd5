"""The command line of evaluation, shared by `audiogen-hf evaluate` and `examples/evaluate_audiogen.py`.

Nothing heavy is imported until the arguments are parsed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

METRICS = ("fad", "kld", "text_consistency")
PRESETS = ("default", "audiocraft")
MODEL_OPTIONS = (
    *("model", "text_encoder", "dtype", "dataset", "dataset_config", "split", "audio_column", "text_column"),
    *("num_samples", "duration", "seed", "use_gt", "guidance_scale", "temperature", "top_k", "top_p"),
)


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of evaluation to a parser."""
    folders = parser.add_argument_group("two folders of sounds")
    folders.add_argument("--generated", type=Path, metavar="FOLDER", help="sounds to judge")
    folders.add_argument(
        "--references",
        type=Path,
        metavar="FOLDER",
        help="real sounds; those of one name pair up for the KL divergence",
    )

    model = parser.add_argument_group("a model on a dataset")
    model.add_argument("--model", help="Hub id or folder of the model")
    model.add_argument("--dataset", help="folder, AudioCraft manifest, parquet, or name of a dataset on the Hub")
    model.add_argument(
        "--text-encoder", help="text encoder for an AudioCraft checkpoint, in place of the one it names"
    )
    model.add_argument("--dataset-config", help="configuration of a Hub dataset")
    model.add_argument("--split", help="split to take (default: test)")
    model.add_argument("--audio-column", help="column of the sound (default: audio)")
    model.add_argument("--text-column", help="column of the descriptions (default: guessed)")
    model.add_argument("--num-samples", type=int, help="rows to take (default: all)")
    model.add_argument("--duration", type=float, help="seconds of each sound (default: 10)")
    model.add_argument("--seed", type=int, help="row i is drawn with seed + i (default: 0)")
    model.add_argument(
        "--use-gt",
        action="store_true",
        default=None,
        help="judge the codec: references encoded and decoded stand in for generated sounds",
    )
    model.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: the model's own")
    for name, kind in (("guidance-scale", float), ("temperature", float), ("top-k", int), ("top-p", float)):
        model.add_argument(f"--{name}", type=kind, help="default: the model's own")
    model.add_argument("--batch-size", type=int, default=8, help="sounds at once (default: %(default)s)")

    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="for results.json, report.html, ..."
    )
    parser.add_argument(
        "--preset", choices=PRESETS, default="default", help="what the figures are taken with (default: %(default)s)"
    )
    parser.add_argument("--metrics", nargs="+", choices=METRICS, help="default: those that the input allows")
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="BACKBONE=PATH",
        help="weights of a backbone of the preset, such as clap=path/to/folder; can be repeated",
    )
    parser.add_argument("--device", help="default: the accelerator, if there is one")
    parser.add_argument(
        "--no-resampling", action="store_true", help="a sound of another rate than a backbone's is an error"
    )
    parser.add_argument("--report-clips", type=int, default=20, help="clips in the report (default: %(default)s)")


def run_evaluate(args: argparse.Namespace) -> None:
    """Evaluate as the options say; write results.json, clips.jsonl and report.html, and print the figures.

    Raises:
        ValueError: The options contradict each other, or the input is bad.
        OSError: A backbone or file is not reachable.
    """
    settings = model_settings(args)

    from .evaluation import evaluate_folders
    from .model_evaluation import ModelEvaluationSettings, evaluate_model
    from .presets import get_preset
    from .report import write_report

    preset = get_preset(args.preset).with_checkpoints(parse_checkpoints(args.checkpoint))
    options = {"preset": preset, "metrics": args.metrics, "device": args.device, "progress": True}
    if settings is None:
        evaluation = evaluate_folders(
            args.generated, args.references, allow_resampling=not args.no_resampling, **options
        )
        title = f"{args.generated} against {args.references or 'its captions'}"
    else:
        settings = ModelEvaluationSettings(**settings)
        evaluation = evaluate_model(settings, args.output, batch_size=args.batch_size, **options)
        title = f"{args.model} on {args.dataset}"
    if evaluation is None:  # not the main process
        return
    evaluation.save(args.output)
    write_report(evaluation, args.output / "report.html", title=title, max_clips=args.report_clips)
    print_figures(evaluation.results)
    print(f"written: {args.output / 'results.json'}, {args.output / 'report.html'}")


def model_settings(args: argparse.Namespace) -> dict | None:
    """Return the given settings of a model's evaluation, or None if two folders are to be compared.

    Raises:
        ValueError: Neither or both are asked for, or options of one are given with the other.
    """
    given = {name: getattr(args, name) for name in MODEL_OPTIONS if getattr(args, name) is not None}
    if args.generated is not None:
        if given or args.references == args.generated:
            wrong = ", ".join(f"--{name.replace('_', '-')}" for name in given) or "--references of the same folder"
            raise ValueError(f"--generated compares folders and takes no {wrong}")
        return None
    if args.model is None or args.dataset is None:
        raise ValueError("give --generated (and --references), or --model and --dataset")
    if args.references is not None or args.no_resampling:
        raise ValueError(
            "--references and --no-resampling go with --generated; a model has the references of its dataset"
        )
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    return given


def parse_checkpoints(values: list[str]) -> dict[str, str]:
    """Return {backbone: place} of "backbone=place" strings. Raises `ValueError` if one has no "="."""
    for value in values:
        if "=" not in value:
            raise ValueError(f"--checkpoint takes BACKBONE=PATH, got {value!r}")
    return dict(value.split("=", 1) for value in values)


def print_figures(results: dict) -> None:
    """Print the metrics, one a line, then what was not computed and what to mind."""
    for metric, figures in results["metrics"].items():
        interval = figures["confidence_interval"]
        line = f"{metric:18s}{figures['value']:10.4f}"
        if interval is not None:
            line += f"  95 % interval {interval[0]:.4f} ... {interval[1]:.4f}"
        if figures.get("infinity") is not None:
            line += f"  extrapolated {figures['infinity']:.4f} (R² {figures['infinity_r_squared']:.2f})"
        print(line)
    if "cross_entropy" in results:
        for number, (nats, perplexity) in enumerate(
            zip(
                results["cross_entropy"]["per_codebook"],
                results["cross_entropy"]["perplexity_per_codebook"],
                strict=True,
            )
        ):
            print(f"codebook {number}: cross entropy {nats:.4f} nats, perplexity {perplexity:.2f}")
    if "si_snr_db" in results.get("codec", {}):
        print(f"SI-SNR            {results['codec']['si_snr_db']['value']:10.4f} dB")
    for metric, reason in results["not_computed"].items():
        print(f"{metric}: not computed, {reason}")
    for warning in results["warnings"]:
        print(f"warning: {warning}")
