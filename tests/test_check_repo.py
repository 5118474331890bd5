"""The repository keeps what its documentation says, and the check finds what does not."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "utils"))
import check_repo  # noqa: E402


def test_the_repository_has_nothing_to_complain_about():
    assert check_repo.check_repository() == []


@pytest.fixture
def root(tmp_path):
    """A copy of what is checked."""
    for folder in ("docs", "src/audiogen_hf", "examples", "utils", "tests"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("fixtures", "__pycache__", "*.safetensors")
        )
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def append(path: Path, text: str):
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def test_a_public_name_that_no_guide_mentions_is_found(root):
    for page in (root / "docs" / "source").glob("*.md"):
        page.write_text(page.read_text(encoding="utf-8").replace("export_audiocraft", "export"), encoding="utf-8")
    assert "docs/source: nothing says what audiogen_hf.export_audiocraft is" in list(
        check_repo.undocumented_names(root)
    )


def test_an_import_that_would_fail_is_found(root):
    append(root / "docs/source/index.md", "\n```python\nfrom audiogen_hf import (\n    pipeline, nothing,\n)\n```\n")
    assert list(check_repo.unresolved_imports(root)) == ["docs/source/index.md: audiogen_hf has no nothing"]


def test_a_table_of_contents_that_differs_from_the_pages_is_found(root):
    (root / "docs/source/new.md").write_text("# New\n")
    (root / "docs/source/pipeline.md").unlink()
    assert list(check_repo.incomplete_toctree(root)) == [
        "docs/source/_toctree.yml: new is not listed",
        "docs/source/_toctree.yml: pipeline is no page",
    ]


def test_a_broken_link_is_found(root):
    append(root / "README.md", "\n[gone](docs/source/gone.md#part) [site](https://example.org/gone.md)\n")
    assert list(check_repo.broken_links(root)) == ["README.md: no such file: docs/source/gone.md"]


def test_a_file_tree_that_differs_from_the_files_is_found(root):
    (root / "src/audiogen_hf/new.py").write_text("")
    (root / "examples/generate.py").unlink()
    assert list(check_repo.incomplete_file_tree(root)) == [
        "README.md: the file tree lists examples/generate.py, which does not exist",
        "README.md: the file tree lacks src/audiogen_hf/new.py",
    ]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("# " + "TO" + "DO: later", "unfinished work"),
        ("see /ho" + "me/ada/notes", "a path of one machine"),
        ("pip install --index" + "-url x", "the address of a package index"),
    ],
)
def test_leftovers_are_found(root, line, what):
    (root / "examples" / "new.py").write_text(f"\n{line}\n")
    assert list(check_repo.leftovers(root)) == [f"examples/new.py:2: {what}: {line}"]
