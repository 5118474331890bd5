"""Draws the spectrograms of generated sounds, side by side, titled by their prompts: the pictures of the guides.

audiogen-hf generate "a dog barking" "thunder rumbling" --output sounds
python utils/plot_spectrograms.py sounds/*.wav --output docs/source/images/audiogen_tiny.png
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot

from audiogen_hf.audio_utils import read_audio, read_metadata

WINDOW = 512  # samples; 32 ms at 16 kHz
RANGE = 80  # dB below the loudest cell of a sound


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds", nargs="+", type=Path, help="files of audiogen-hf generate")
    parser.add_argument("--output", type=Path, required=True, help="picture to write")
    options = parser.parse_args()

    figure, axes = pyplot.subplots(1, len(options.sounds), figsize=(3.2 * len(options.sounds), 2.6), squeeze=False)
    for axis, path in zip(axes[0], options.sounds, strict=True):
        try:
            sound, sampling_rate = read_audio(path)
        except (OSError, ValueError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 2
        sound = np.atleast_2d(sound).mean(axis=0) + 1e-7 * np.random.default_rng(0).standard_normal(sound.shape[-1])
        power, _, _, image = axis.specgram(
            sound, NFFT=WINDOW, Fs=sampling_rate, noverlap=3 * WINDOW // 4, cmap="magma"
        )
        loudest = 10 * np.log10(power.max())
        image.set_clim(loudest - RANGE, loudest)
        axis.set_title(read_metadata(path).get("prompt", path.stem), fontsize=9)
        axis.set_xlabel("seconds", fontsize=8)
    axes[0, 0].set_ylabel("Hz", fontsize=8)
    figure.tight_layout()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=80)
    return 0


if __name__ == "__main__":
    sys.exit(main())
