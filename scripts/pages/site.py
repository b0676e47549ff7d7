"""The pages as a tree that MkDocs reads: `python -m scripts.pages.site build/pages`, then `mkdocs build`.

    README.md, docs/, examples/README.md, …      the same names, so that links between pages are as they were
    ../examples/the_loop.py                      what pages link to and is no page comes along as it is
    a link to a folder                           its text alone: a site has no folders to show
    reference/python.md                          a page made here: the library, from its docstrings

Invariant: whatever stands in the tree is linked from a page of it, and no link of a page leaves it.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import capo_ray

ROOT = Path(__file__).parents[2]
PAGES = ("*.md", "docs/**/*.md", "examples/*.md")
LINK = re.compile(r"(?<!\!)\[([^\]]*)\]\(([^)\s]+)\)")
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)


def pages() -> list[Path]:
    """The pages of the project, from its root."""
    return sorted({path.relative_to(ROOT) for pattern in PAGES for path in ROOT.glob(pattern)})


def python_reference() -> str:
    """The page of the library's names, which mkdocstrings fills from their docstrings."""
    parts = ["# The library", "How it is used: [From Python](../docs/python.md)."]
    return "\n\n".join([*parts, *(f"::: capo_ray.api.{name}" for name in capo_ray.__all__)]) + "\n"


def write_tree(folder: Path) -> None:
    """Put all pages, and what they show and link to, into a folder that is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    for page in pages():
        text, files = of_site(page)
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, folder / file)
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        (folder / page).write_text(text, encoding="utf-8")
    (folder / "reference").mkdir(exist_ok=True)
    (folder / "reference" / "python.md").write_text(python_reference(), encoding="utf-8")


def of_site(page: Path) -> tuple[str, set[Path]]:
    """A page's text for the site, and the files of the project that it shows or links to."""
    files: set[Path] = set()

    def target(link: str) -> Path:
        return (ROOT / page.parent / link.partition("#")[0]).resolve()

    def mend(match: re.Match[str]) -> str:
        link = match[2]
        if "://" in link or link.startswith(("#", "mailto:")):
            return match[0]
        path = target(link)
        if path.is_dir():
            return match[1]
        if path.suffix != ".md":
            files.add(path.relative_to(ROOT))
        return match[0]

    parts = CODE.split((ROOT / page).read_text(encoding="utf-8"))
    text = "".join(part if i % 2 else LINK.sub(mend, part) for i, part in enumerate(parts))
    shown = (link for part in parts[::2] for link in IMAGE.findall(part) if "://" not in link)
    files |= {target(link).relative_to(ROOT) for link in shown}
    return text, files


if __name__ == "__main__":
    write_tree(Path(sys.argv[1]))
