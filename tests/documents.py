"""What the documents show as code, so that tests can run it."""

from __future__ import annotations

import ast
import inspect
import re
from itertools import takewhile
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from tests.processes import CHECKOUT

README = CHECKOUT / "README.md"

_FENCED = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")


class Block(NamedTuple):
    """A fenced block."""

    path: Path
    line: int
    """Number of its first line in the document."""
    language: str
    title: str
    """What its fence names it with title="…"; empty without."""
    text: str


class Dialogue(NamedTuple):
    """A command of a console block, and what it prints."""

    command: str
    output: str


def blocks(path: Path) -> list[Block]:
    """Return the fenced blocks of a document."""
    document = path.read_text()
    found = []
    for match in _FENCED.finditer(document):
        language, _, options = match["info"].strip().partition(" ")
        title = re.search(r'title="([^"]*)"', options)
        text = re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        line = document.count("\n", 0, match.start("text")) + 1
        found.append(Block(path, line, language, title[1] if title else "", text))
    return found


def python_blocks(path: Path) -> list[Block]:
    return [block for block in blocks(path) if block.language == "python"]


def titled(path: Path, title: str) -> str:
    """Return the text of the one block with a title."""
    (text,) = [block.text for block in blocks(path) if block.title == title]
    return text


def dialogues(block: Block) -> list[Dialogue]:
    """Return the commands of a console block, with what is shown below each."""
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    return [Dialogue(command, output.strip()) for command, _, output in (part.partition("\n") for part in parts)]


def consoles(path: Path) -> list[list[str]]:
    """Return the commands of each console block of a document."""
    return [
        [dialogue.command for dialogue in dialogues(block)] for block in blocks(path) if block.language == "console"
    ]


def links(path: Path) -> list[Path]:
    """Return the files that a document links to."""
    return [(path.parent / target).resolve() for target in _LINK.findall(path.read_text())]


async def run(block: Block, namespace: dict[str, Any]) -> None:
    """Run a Python block, which may await, in a namespace that it may add to. Its lines are those of the document."""
    source = "\n" * (block.line - 1) + block.text
    code = compile(source, block.path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = _evaluate(code, namespace)
    if inspect.isawaitable(result):
        await result


def _evaluate(code: CodeType, namespace: dict[str, Any]) -> Any:
    return eval(code, namespace)


def rows(path: Path, header: str) -> list[str]:
    """Return the rows of the one table with a header line."""
    lines = path.read_text().splitlines()
    return list(takewhile(lambda line: line.startswith("|"), lines[lines.index(header) + 2 :]))
