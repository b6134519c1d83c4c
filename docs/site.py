"""Builds the site of what the repository has: pages outside `docs` become pages of it, and links between all of them
stay links.

MkDocs knows one folder. The README is the first page here, and the changelog, the examples and the figures are pages,
too, without a copy of any. What a link leads to and is no page, such as the licence, is named without a link.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

CHECKOUT = Path(__file__).parent.parent
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>(?!https?:|mailto:|#)[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
FENCE = re.compile(r"^( *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".html": "html", ".json": "json", ".yml": "yaml"}


def sources() -> dict[str, str]:
    """Return the pages by where they come from: path in the repository → path in the site."""
    pages = {
        "README.md": "index.md",
        "CHANGELOG.md": "changelog.md",
        "CONTRIBUTING.md": "contributing.md",
        "benchmarks/README.md": "benchmarks.md",
    }
    examples = CHECKOUT / "examples"
    for path in sorted([*examples.glob("*.py"), *examples.glob("*/README.md")]):
        name = path.stem if path.suffix == ".py" else path.parent.name
        pages[path.relative_to(CHECKOUT).as_posix()] = f"examples/{name}.md"
    return pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are outside of `docs`."""
    for source, page in sources().items():
        files.append(File.generated(config, page, content=_page(source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Have links lead to pages of the site."""
    here = page.file.src_uri
    by_page = {target: source for source, target in sources().items()}
    source = by_page.get(here, f"docs/{here}")
    parts = FENCE.split(markdown)
    return "".join(part if place % 2 else _relink(part, source, here) for place, part in enumerate(parts))


def _page(source: str) -> str:
    """Return the text of a page; a program is shown as it is, under its name."""
    path = CHECKOUT / source
    text = path.read_text()
    if path.suffix == ".md":
        return text + "".join(_shown(each) for each in _parts(path))
    return f"# {path.name}\n\n```{LANGUAGES[path.suffix]}\n{text}```\n"


def _parts(readme: Path) -> list[Path]:
    """Return the programs of an example that has a folder."""
    folder = readme.parent
    if folder.parent.name != "examples":
        return []
    return [path for path in sorted(folder.iterdir()) if path.suffix in LANGUAGES and path.stat().st_size < 20_000]


def _shown(path: Path) -> str:
    return f"\n## {path.name}\n\n````{LANGUAGES[path.suffix]}\n{path.read_text()}````\n"


def _relink(text: str, source: str, here: str) -> str:
    known = sources()

    def relinked(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["target"]))
        if target in known:
            page = known[target]
        elif target.startswith("docs/"):
            page = target.removeprefix("docs/")
        elif target.startswith("examples/"):  # a program of an example that is shown on the example's page
            page = f"examples/{target.split('/')[1]}.md"
        else:
            return link["text"]
        lead = posixpath.relpath(page, posixpath.dirname(here) or ".")
        anchor = re.sub("-+", "-", link["anchor"] or "")  # GitHub keeps the place of what it leaves out
        return f"[{link['text']}]({lead}{anchor})"

    return LINK.sub(relinked, text)
