"""An evaluation as one HTML file: figures, then spectrograms and players of the clips; it needs nothing beside it."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path

import numpy as np
import soundfile
import torch

from ..audio_utils import read_audio
from .evaluation import SIDES, Evaluation, write_text
from .yamnet import LOG_OFFSET, SAMPLING_RATE, LogMel

TITLES = {"fad": "Fréchet audio distance", "kld": "KL divergence", "text_consistency": "Text consistency"}
BETTER = {"fad": "lower", "kld": "lower", "text_consistency": "higher"}

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; margin: 1rem 0 }} td, th {{ padding: .3rem .8rem; border-bottom: 1px solid #ddd;
text-align: left; vertical-align: top }} .warning {{ background: #fff3cd; padding: .4rem .8rem; margin: .3rem 0 }}
.sound img {{ width: 24rem; height: 6rem; display: block }} .sound audio {{ width: 24rem }}
pre {{ background: #f6f6f6; padding: .8rem; overflow: auto }}
</style></head><body><h1>{title}</h1>
{warnings}
<h2>Figures</h2>{figures}
<h2>Clips</h2><p>{shown}</p>{clips}
<h2>Settings</h2><pre>{settings}</pre>
</body></html>
"""


def write_report(evaluation: Evaluation, path: str | Path, *, title: str = "Evaluation", max_clips: int = 20) -> Path:
    """Write an evaluation as HTML with embedded pictures and MP3 sound.

    Args:
        evaluation: What [`evaluate_folders`] or [`evaluate_model`] returned; its sound files must still be there.
        path: The file to write.
        title: Its heading.
        max_clips: Clips to show, spread evenly over all in the order of their KL divergence, the best first.

    Raises:
        ValueError: `max_clips` is negative.
    """
    if max_clips < 0:
        raise ValueError(f"max_clips must not be negative, got {max_clips}")
    clips = sorted(evaluation.clips, key=lambda clip: clip.get("kld", clip["index"]))
    places = np.linspace(0, len(clips) - 1, min(max_clips, len(clips))).round().astype(int)
    shown = [clips[place] for place in places]
    settings = {key: value for key, value in evaluation.results.items() if key not in ("metrics", "warnings")}
    page = PAGE.format(
        title=html.escape(title),
        warnings="".join(
            f'<p class="warning">{html.escape(warning)}</p>' for warning in evaluation.results["warnings"]
        ),
        figures=_figures(evaluation.results),
        shown=f"{len(shown)} of {len(clips)} clips.",
        clips=_clip_table(shown) if shown else "",
        settings=html.escape(json.dumps(settings, indent=2, ensure_ascii=False)),
    )
    write_text(Path(path), page)
    return Path(path)


def _figures(results: dict) -> str:
    """The table of metrics, and that of the model's cross entropy where there is one."""
    rows = []
    for metric, figures in results["metrics"].items():
        interval = figures["confidence_interval"]
        notes = [f"{BETTER[metric]} is better"]
        if figures.get("infinity") is not None:
            notes.append(
                f"extrapolated to endless clips {figures['infinity']:.4g} (R² {figures['infinity_r_squared']:.2f})"
            )
        rows.append(
            (
                TITLES[metric],
                f"{figures['value']:.4g}",
                "" if interval is None else f"{interval[0]:.4g} … {interval[1]:.4g}",
                "; ".join(notes),
            )
        )
    tables = _table(("Metric", "Value", "95 % interval", ""), rows)
    if "cross_entropy" in results:
        entropy, usage = results["cross_entropy"], results["codec"]["codebooks"]
        columns = zip(entropy["per_codebook"], entropy["perplexity_per_codebook"], usage, strict=True)
        rows = [
            (number, f"{nats:.4f}", f"{perplexity:.1f}", f"{used['entropy_bits']:.2f}", f"{100 * used['used']:.1f} %")
            for number, (nats, perplexity, used) in enumerate(columns)
        ]
        head = ("Codebook", "Cross entropy (nats)", "Perplexity", "Entropy of the codes (bits)", "Codes used")
        tables += _table(head, rows)
    return tables


def _table(head: tuple, rows: list[tuple]) -> str:
    lines = ["".join(f"<th>{html.escape(str(cell))}</th>" for cell in head)]
    lines += ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _clip_table(clips: list[dict]) -> str:
    head = "".join(f"<th>{cell}</th>" for cell in ("Clip", *(side.capitalize() for side in SIDES)))
    return f"<table><tr>{head}</tr>" + "".join(_clip_row(clip) for clip in clips) + "</table>"


def _clip_row(clip: dict) -> str:
    values = [f"{TITLES[metric]} {clip[metric]:.3g}" for metric in ("kld", "text_consistency") if metric in clip]
    words = [f"<b>{html.escape(clip['name'])}</b>", html.escape(clip["caption"] or ""), *values]
    sounds = "".join(f'<td class="sound">{_sound(clip[side]) if side in clip else ""}</td>' for side in SIDES)
    return f"<tr><td>{'<br>'.join(words)}</td>{sounds}</tr>"


def _sound(path: str) -> str:
    try:
        samples, _ = read_audio(path, sampling_rate=SAMPLING_RATE)
    except ValueError as error:
        return html.escape(str(error))
    picture, sound = base64.b64encode(_spectrogram(samples)), base64.b64encode(_mp3(samples))
    return (
        f'<img alt="spectrogram" src="data:image/png;base64,{picture.decode()}">'
        f'<audio controls preload="none" src="data:audio/mpeg;base64,{sound.decode()}"></audio>'
    )


def _spectrogram(samples: np.ndarray) -> bytes:
    """A PNG of the log-mel spectrogram, as YAMNet sees it: low frequencies at the bottom, 10 ms a column."""
    from matplotlib.image import imsave

    waveform = torch.from_numpy(np.pad(samples, (0, max(400 - len(samples), 0))))
    log_mel = LogMel(LOG_OFFSET)(waveform).numpy().T
    buffer = io.BytesIO()
    imsave(buffer, log_mel, cmap="magma", origin="lower", format="png", vmin=np.log(LOG_OFFSET), vmax=4)
    return buffer.getvalue()


def _mp3(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1, 1), SAMPLING_RATE, format="MP3")
    return buffer.getvalue()
