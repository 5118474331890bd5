"""Evaluation of generated sound: measures on arrays, backbones, presets, folders, models, and a report.

1. On arrays: `frechet_audio_distance`, `kl_divergence`, `text_consistency`, `si_snr`, `CodebookStatistics`, and for
   streams `GroupedMoments` with `frechet_distance`, `bootstrap_frechet_interval`, `extrapolate_frechet_distance`.
2. Backbones: `load_backbone(name)` gives embeddings, tags or a space shared with text; `BACKBONES` says licence and
   source.
3. Folders and models: `evaluate_folders(generated, references)`, `evaluate_model(settings, output)`, `write_report`.
4. With `evaluate`: `evaluate.load(metric_path("fad"))`, also "kld" and "text_consistency"; nothing is fetched.
"""

import importlib
from pathlib import Path

_EXPORTS = {
    "backbones": [
        "BACKBONES",
        "AudioFeatures",
        "Backbone",
        "BackboneInfo",
        "BackboneUnavailableError",
        "load_backbone",
    ],
    "bootstrap": ["bootstrap_mean_interval"],
    "codec": ["CodebookStatistics", "CodebookUsage", "si_snr"],
    "consistency": ["text_consistency"],
    "divergence": ["kl_divergence"],
    "evaluation": ["Evaluation", "evaluate_folders"],
    "frechet": [
        "FrechetLimit",
        "GaussianStatistics",
        "GroupedMoments",
        "bootstrap_frechet_interval",
        "extrapolate_frechet_distance",
        "frechet_audio_distance",
        "frechet_distance",
    ],
    "model_evaluation": ["ModelEvaluationSettings", "evaluate_model"],
    "presets": ["PRESETS", "FeatureSettings", "Preset"],
    "report": ["write_report"],
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["metric_path", *sorted(_MODULE_OF)]


def metric_path(name: str) -> str:
    """Return the folder of an `evaluate` module: "fad", "kld" or "text_consistency"."""
    modules = Path(__file__).parent / "modules"
    names = sorted(path.name for path in modules.iterdir() if (path / f"{path.name}.py").is_file())
    if name not in names:
        raise ValueError(f"name must be one of {', '.join(names)}; got {name!r}")
    return str(modules / name)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__})
