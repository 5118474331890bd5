"""Presets: everything a published figure depends on, under one name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from .divergence import DIRECTION, EPSILON

RESAMPLER = "windowed sinc, 24 zero crossings, roll-off 0.945 (audiogen_hf.audio_utils.resample)"


@dataclass(frozen=True)
class FeatureSettings:
    """How the features of one metric are taken.

    Attributes:
        backbone: Name in `audiogen_hf.metrics.backbones.BACKBONES`.
        checkpoint: Its weights; None for its default.
        normalization: Level given to the sound first, a strategy of `audiogen_hf.audio_utils.normalize_audio`.
    """

    backbone: str
    checkpoint: str | None = None
    normalization: str = "none"


@dataclass(frozen=True)
class Preset:
    """Settings of an evaluation.

    Attributes:
        name: Name of the preset.
        fad: Features of the Fréchet distance.
        kld: Features of the KL divergence.
        text_consistency: Features of the text-audio consistency.
        clip_seconds: Sounds are cut to this length; the two of a pair also to the shorter of them.
        min_seconds: Shorter sounds are excluded (and counted).
        num_clips: Clips the preset's published figures were taken on; None if it has none. Fewer give a warning.
    """

    name: str
    fad: FeatureSettings
    kld: FeatureSettings
    text_consistency: FeatureSettings
    clip_seconds: float
    min_seconds: float
    num_clips: int | None = None

    def with_checkpoints(self, checkpoints: dict[str, str]) -> Preset:
        """Return a copy that takes the named backbones' weights from elsewhere.

        Raises:
            ValueError: The preset does not use a backbone named in `checkpoints`.
        """
        settings = {metric: getattr(self, metric) for metric in METRICS}
        unused = set(checkpoints) - {setting.backbone for setting in settings.values()}
        if unused:
            used = sorted({setting.backbone for setting in settings.values()})
            raise ValueError(f"preset {self.name} uses {', '.join(used)}; got a checkpoint for {', '.join(unused)}")
        changed = {
            metric: replace(setting, checkpoint=checkpoints[setting.backbone])
            for metric, setting in settings.items()
            if setting.backbone in checkpoints
        }
        return replace(self, **changed)

    def to_dict(self) -> dict:
        """Return the settings, those common to all presets included, for the record of a result."""
        return {**asdict(self), "kl_direction": DIRECTION, "kl_epsilon": EPSILON, "resampler": RESAMPLER}


METRICS = ("fad", "kld", "text_consistency")

PRESETS = {
    preset.name: preset
    for preset in (
        # Tags and distances without any download.
        Preset(
            name="default",
            fad=FeatureSettings("yamnet"),
            kld=FeatureSettings("yamnet"),
            text_consistency=FeatureSettings("clap"),
            clip_seconds=10.0,
            min_seconds=0.15,
        ),
        # objective_eval.yaml of the solver and audiocraft/metrics of AudioCraft 1.3: FAD from VGGish on files written
        # by the peak strategy, PaSST heard for 10 s, the music CLAP; every clip of AudioCaps' test split.
        Preset(
            name="audiocraft",
            fad=FeatureSettings("vggish", normalization="peak"),
            kld=FeatureSettings("passt"),
            text_consistency=FeatureSettings("laion_clap"),
            clip_seconds=10.0,
            min_seconds=1.0,
            num_clips=975,
        ),
    )
}


def get_preset(name: str) -> Preset:
    """Return the preset of this name. Raises `ValueError` if there is none."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}")
    return PRESETS[name]
