"""Text to sound with AudioGen, in the Hugging Face ecosystem.

Importing this package loads neither torch nor transformers: names resolve at first use, and the Auto classes learn
of AudioGen when transformers is imported.
"""

import importlib

from .registration import register_with_auto_classes

__version__ = "0.1.0"

_EXPORTS = {
    "audio_utils": ["read_audio", "read_metadata", "write_audio"],
    "configuration_audiogen": ["AudioGenConfig", "AudioGenDecoderConfig"],
    "cpu_inference": ["optimize_for_cpu"],
    "convert_audiocraft": ["export_audiocraft"],
    "generation_audiogen": ["AudioGenGenerateOutput"],
    "int8_storage": ["save_int8"],
    "modeling_audiogen": ["AudioGenForConditionalGeneration", "AudioGenOutput", "AudioGenPreTrainedModel"],
    "pipelines": ["pipeline"],
    "processing_audiogen": ["AudioGenProcessor"],
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})


register_with_auto_classes()
