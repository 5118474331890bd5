"""Check what tools do not: that documentation is complete and true to the code, and that nothing private is left.

    python utils/check_repo.py

Prints one line for each finding, and exits with 1 if there is any.
"""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
PUBLIC_MODULES = ("audiogen_hf", "audiogen_hf.audiocraft", "audiogen_hf.data", "audiogen_hf.metrics")
SUFFIXES = {".py", ".md", ".toml", ".yml", ".yaml", ".cfg", ".csv", ".jsonl", ""}
FOLDERS = ("src", "tests", "docs", "examples", "utils", ".ci")
LEFTOVERS = {
    "unfinished work": r"\b(TODO|FIXME|XXX|HACK)\b",
    "a path of one machine": r"(?<![\w.])/(root|work|home/\w+|Users/\w+)/",
    "the address of a package index": r"https?://[\w.]*(pypi|pythonhosted)|--(extra-)?index-url|--find-links",
}


def check_repository(root: Path = ROOT) -> list[str]:
    """Every finding, one line each."""
    return [
        *undocumented_names(root),
        *unresolved_imports(root),
        *incomplete_toctree(root),
        *broken_links(root),
        *incomplete_file_tree(root),
        *leftovers(root),
    ]


def documentation(root: Path) -> dict[Path, str]:
    pages = [root / "README.md", *sorted((root / "docs" / "source").glob("*.md"))]
    return {page: page.read_text(encoding="utf-8") for page in pages}


def undocumented_names(root: Path) -> Iterator[str]:
    """Public names that no guide mentions."""
    guides = "\n".join(text for page, text in documentation(root).items() if page.name != "README.md")
    for module in PUBLIC_MODULES:
        for name in importlib.import_module(module).__all__:
            if not re.search(rf"\b{re.escape(name)}\b", guides) and name != "__version__":
                yield f"docs/source: nothing says what {module}.{name} is"


def unresolved_imports(root: Path) -> Iterator[str]:
    """Imports in the documentation's code that would fail."""
    for page, text in documentation(root).items():
        code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
        for module, names in re.findall(r"from (audiogen_hf[\w.]*) import (\([^)]*\)|[^\n]*)", code):
            for name in re.findall(r"\w+", re.sub(r"#.*", "", names)):
                if not hasattr(importlib.import_module(module), name):
                    yield f"{page.relative_to(root)}: {module} has no {name}"


def incomplete_toctree(root: Path) -> Iterator[str]:
    """Pages that the table of contents lacks, and entries without a page."""
    source = root / "docs" / "source"
    sections = yaml.safe_load((source / "_toctree.yml").read_text(encoding="utf-8"))
    listed = [page["local"] for section in sections for page in section["sections"]]
    pages = {page.stem for page in source.glob("*.md")}
    for name in sorted(pages.symmetric_difference(listed)):
        yield f"docs/source/_toctree.yml: {name} is {'not listed' if name in pages else 'no page'}"
    for name in sorted({name for name in listed if listed.count(name) > 1}):
        yield f"docs/source/_toctree.yml: {name} is listed twice"


def broken_links(root: Path) -> Iterator[str]:
    """Links within the repository that lead nowhere."""
    for page, text in documentation(root).items():
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in target and not (page.parent / target).exists():
                yield f"{page.relative_to(root)}: no such file: {target}"


def incomplete_file_tree(root: Path) -> Iterator[str]:
    """Files that README's tree lacks, and lines of it without a file."""
    tree = re.search(r"^```\n(src/audiogen_hf/\n.*?)^```", (root / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    if tree is None:
        yield "README.md: no file tree, which starts with src/audiogen_hf/"
        return
    listed, folder = set(), ""
    for line in tree[1].splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
        listed.add(name if not line.startswith(" ") else folder + name)
    for name in sorted(listed):
        if not (root / name).exists():
            yield f"README.md: the file tree lists {name}, which does not exist"
    for folder in ("src/audiogen_hf", "examples", "utils"):
        for path in sorted((root / folder).glob("*.py")):
            name = path.relative_to(root).as_posix()
            if name not in listed and path.name != "__main__.py":
                yield f"README.md: the file tree lacks {name}"


def leftovers(root: Path) -> Iterator[str]:
    """Words that belong to one person's or machine's work."""
    files = [path for folder in FOLDERS for path in (root / folder).rglob("*")] + list(root.iterdir())
    for path in sorted(files):
        if not path.is_file() or path.suffix not in SUFFIXES or path == root / "utils" / "check_repo.py":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="ignore").splitlines(), start=1):
            for what, pattern in LEFTOVERS.items():
                if re.search(pattern, line):
                    yield f"{path.relative_to(root)}:{number}: {what}: {line.strip()[:80]}"


def main() -> int:
    findings = check_repository()
    print("\n".join(findings) or "nothing to complain about")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
