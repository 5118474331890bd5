"""Packaging of audiogen_hf. Lower bounds only; the reason for each bound stands beside it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
INIT = (ROOT / "src/audiogen_hf/__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'__version__ = "([^"]+)"', INIT).group(1)

CORE = [
    "torch>=2.6",  # torch.load(weights_only=True, mmap=True) and flex attention
    "transformers>=5.24",  # `generate` and the masks take keys and values as `cache` since then
    "huggingface-hub>=1.0",
    "safetensors>=0.5",
    "tokenizers>=0.21",
    "accelerate>=1.3",
    "numpy>=2.0",
    "soundfile>=0.13",  # MP3 with metadata
    "pyloudnorm>=0.1.1",
    "scipy>=1.14",  # resampling; the matrix square root of the Fréchet distance
    "pyyaml>=6.0",
    "tqdm>=4.66",
    "sentencepiece>=0.2",  # text encoders that ship only a SentencePiece model
    "protobuf>=5.0",  # read by the SentencePiece converter
]
TRAINING = [
    "datasets>=4.0",
    "peft>=0.20",  # `load_adapter` of transformers builds on it
    "tensorboard>=2.18",
    "soxr>=0.5",  # changes of speed in examples/tiny
]
EVALUATION = [
    "datasets>=4.0",
    "evaluate>=0.4.3",
    "matplotlib>=3.8",  # spectrograms of the report
]
TEST = [
    "pytest>=8.0",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "setuptools>=77",  # tests build the wheel and look into it
]
QUALITY = ["ruff>=0.9"]

setup(
    name="audiogen_hf",
    version=VERSION,
    description="AudioGen in the Hugging Face ecosystem: text to sound, exact, fast and trainable",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0 AND CC-BY-SA-4.0",  # the code, and the weights of audiogen-tiny
    license_files=["LICENSE"],
    package_dir={"": "src"},
    packages=find_packages("src"),
    include_package_data=True,
    package_data={"audiogen_hf": ["assets/**/*", "training/presets/*.yaml", "metrics/**/*"]},
    python_requires=">=3.11",
    install_requires=CORE,
    extras_require={
        "training": TRAINING,
        "evaluation": EVALUATION,
        "test": TRAINING + EVALUATION + TEST,
        "dev": TRAINING + EVALUATION + TEST + QUALITY,
    },
    entry_points={"console_scripts": ["audiogen-hf=audiogen_hf.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Multimedia :: Sound/Audio :: Sound Synthesis",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
