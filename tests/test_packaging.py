"""The distributions hold what the package reads: its modules, its models, its tables."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from audiogen_hf.packaged_models import PACKAGED_MODELS

ROOT = Path(__file__).resolve().parent.parent
MAX_WHEEL_BYTES = 40_000_000


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """A wheel and a source distribution of a copy of the repository, with one model more."""
    root = tmp_path_factory.mktemp("repository")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", root / "src", ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    model = root / "src" / "audiogen_hf" / "assets" / "some-model"
    (model / "deep").mkdir(parents=True)
    for name in ("config.json", "LICENSE", "deep/model.safetensors"):
        (model / name).write_text(name)
    code = "from setuptools import build_meta; build_meta.build_wheel('dist'); build_meta.build_sdist('dist')"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,), (sdist,) = (root / "dist").glob("*.whl"), (root / "dist").glob("*.tar.gz")
    return root, wheel, sdist


def expected_files(root: Path) -> set[str]:
    package = root / "src"
    return {path.relative_to(package).as_posix() for path in package.glob("audiogen_hf/**/*") if path.is_file()}


def test_the_wheel_holds_every_file_of_the_package(distributions):
    root, wheel, _ = distributions
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("audiogen_hf/")}
        assert archive.read("audiogen_hf/assets/some-model/deep/model.safetensors") == b"deep/model.safetensors"
    assert "audiogen_hf/assets/some-model/LICENSE" in held
    assert held == expected_files(root)


def test_the_source_distribution_holds_it_too(distributions):
    root, _, sdist = distributions
    with tarfile.open(sdist) as archive:
        held = {name.partition("/src/")[2] for name in archive.getnames()}
    assert expected_files(root) <= held


def test_the_wheel_is_small(distributions):
    _, wheel, _ = distributions
    assert wheel.stat().st_size < MAX_WHEEL_BYTES


def test_models_are_where_the_distributions_take_them_from():
    for folder in PACKAGED_MODELS.values():
        assert folder.relative_to(ROOT).as_posix() == f"src/audiogen_hf/assets/{folder.name}"
