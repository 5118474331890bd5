"""Makes transformers' Auto classes know AudioGen, without importing transformers or torch before anyone needs them.

An import hook waits for the modules that hold the Auto classes, and for ours: whichever of a pair is loaded last
completes the registration, as soon as nothing that our modules import is itself half loaded.
"""

import importlib
import importlib.abc
import importlib.util
import sys

AUTO = "transformers.models.auto"


def _register_config(auto, ours):
    auto.AutoConfig.register("audiogen", ours.AudioGenConfig, exist_ok=True)
    auto.AutoConfig.register("audiogen_decoder", ours.AudioGenDecoderConfig, exist_ok=True)


def _register_model(auto, ours):
    model, config = ours.AudioGenForConditionalGeneration, ours.AudioGenConfig
    auto.AutoModel.register(config, model, exist_ok=True)
    auto.AutoModelForTextToWaveform.register(config, model, exist_ok=True)
    auto.AutoModel.register(ours.AudioGenDecoderConfig, ours.AudioGenDecoder, exist_ok=True)


def _register_processor(auto, ours):
    config = importlib.import_module("audiogen_hf.configuration_audiogen").AudioGenConfig
    auto.AutoProcessor.register(config, ours.AudioGenProcessor, exist_ok=True)


def _register_quantizer(auto, ours):
    if ours.QUANT_METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantization_config(ours.QUANT_METHOD)(ours.Int8StorageConfig)
        auto.register_quantizer(ours.QUANT_METHOD)(ours.Int8StorageQuantizer)


# (module of an Auto class, our module, the class whose presence says that ours is loaded, what to do then)
PAIRS = [
    (f"{AUTO}.configuration_auto", "audiogen_hf.configuration_audiogen", "AudioGenConfig", _register_config),
    (f"{AUTO}.modeling_auto", "audiogen_hf.modeling_audiogen", "AudioGenForConditionalGeneration", _register_model),
    (f"{AUTO}.processing_auto", "audiogen_hf.processing_audiogen", "AudioGenProcessor", _register_processor),
    ("transformers.quantizers.auto", "audiogen_hf.int8_storage", "Int8StorageQuantizer", _register_quantizer),
]


# Loads the Auto classes before it is complete (it does for every `from transformers import SomeModel`), and our model
# needs it: then registration waits for it.
MODELING_LAYERS = "transformers.modeling_layers"
MODEL_PAIR = PAIRS[1]


def _register(auto_name: str, our_name: str, class_name: str, register) -> None:
    # While our module is itself being imported, this returns it unfinished; its own hook then comes later.
    ours = importlib.import_module(our_name)
    if hasattr(ours, class_name):
        register(sys.modules[auto_name], ours)


class _RegisteringLoader(importlib.abc.Loader):
    """Loads a module as its own loader does, then completes the registration."""

    def __init__(self, loader, pair):
        self.loader = loader
        self.pair = pair

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        needed = [self.pair[0], MODELING_LAYERS] if self.pair is MODEL_PAIR else [self.pair[0]]
        if self.pair[0] in sys.modules and not any(_is_loading(name, module) for name in needed):
            _register(*self.pair)


def _is_loading(name: str, executed) -> bool:
    module = sys.modules.get(name)
    return module not in (None, executed) and getattr(module.__spec__, "_initializing", False)


class _Finder(importlib.abc.MetaPathFinder):
    """Watches for the modules of `PAIRS`, each once."""

    def __init__(self):
        self.watched = {name: pair for pair in PAIRS for name in pair[:2]} | {MODELING_LAYERS: MODEL_PAIR}

    def find_spec(self, name, path=None, target=None):
        pair = self.watched.pop(name, None)
        if pair is None:
            return None
        spec = importlib.util.find_spec(name)
        spec.loader = _RegisteringLoader(spec.loader, pair)
        return spec


def register_with_auto_classes() -> None:
    """Registers AudioGen now where transformers is loaded, and as soon as it is where not."""
    sys.meta_path.insert(0, _Finder())
    for pair in PAIRS:
        if pair[0] in sys.modules:
            _register(*pair)
