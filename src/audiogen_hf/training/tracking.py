"""Where a run's figures go: the console, `OUTPUT_DIR/log.jsonl`, and the trackers that accelerate knows."""

import importlib
import json
import logging
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

logger = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"


class RunLog:
    """Writes figures from the main process; on the others it does nothing.

    Args:
        accelerator: with `log_with` set to the trackers wanted.
        output_dir: folder of the run; the log there is appended to.
        project: name of the run for trackers.
        options: the run's options for trackers; lists go as text, which all of them take.
    """

    def __init__(self, accelerator: Accelerator, output_dir: str | Path, project: str, options: dict):
        self.accelerator = accelerator
        self.path = Path(output_dir) / LOG_FILE
        plain = {name: v if isinstance(v, int | float | str | bool) else str(v) for name, v in options.items()}
        accelerator.init_trackers(project, config=plain)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Log figures of one step, by name, such as {"train/l1": 0.1}."""
        self.accelerator.log(figures, step=step)
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **figures}) + "\n")
            logger.info("step %d  %s", step, "  ".join(f"{name} {value:.5g}" for name, value in figures.items()))

    def write_audio(self, step: int, name: str, audio: torch.Tensor, sampling_rate: int, caption: str) -> None:
        """Log a sound and its spectrogram to the trackers that take them: tensorboard, trackio and wandb.

        Args:
            audio: (channels, samples), float, within -1 and 1.
            caption: what it is, such as its description.
        """
        audio = audio.detach().float().cpu().clamp(-1, 1)
        image = spectrogram_image(audio.mean(dim=0))
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.writer.add_audio(name, audio.mean(dim=0, keepdim=True), step, sample_rate=sampling_rate)
                tracker.writer.add_image(f"{name}/spectrogram", image, step, dataformats="HW")
                tracker.writer.add_text(f"{name}/text", caption, step)
            elif tracker.name in ("trackio", "wandb"):
                library = importlib.import_module(tracker.name)
                sound = library.Audio(audio.T.numpy(), sample_rate=sampling_rate, caption=caption)
                picture = library.Image(np.stack([image] * 3, axis=-1), caption=caption)
                tracker.log({name: sound, f"{name}/spectrogram": picture}, step=step)

    def close(self) -> None:
        self.accelerator.end_training()


def spectrogram_image(audio: torch.Tensor, n_fft: int = 512, dynamic_range_db: float = 80.0) -> np.ndarray:
    """A sound as a picture: (samples,) float to (n_fft // 2 + 1, frames) uint8, low frequencies at the bottom, the
    loudest cell white, all that is `dynamic_range_db` below it black."""
    window = torch.hann_window(n_fft)
    power = torch.stft(audio, n_fft, hop_length=n_fft // 2, window=window, return_complex=True).abs().square()
    decibels = 10 * power.clamp_min(1e-12).log10()
    brightness = (1 + (decibels - decibels.max()) / dynamic_range_db).clamp(0, 1)
    return (255 * brightness).byte().flipud().numpy()
