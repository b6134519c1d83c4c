"""What became of events, as the commands list and show it: dead letters, and the archive."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeVar

from eventbus_fastapi.cli.options import time_of
from eventbus_fastapi.cli.terminal import show, visible, visible_json

MAX_ERROR = 80
"""Longest error in a table, characters."""

E = TypeVar("E", covariant=True)
F = TypeVar("F")


class Page(Protocol[E]):
    """A part of a list."""

    @property
    def entries(self) -> Sequence[tuple[str, E]]: ...
    @property
    def next(self) -> int | None: ...


async def find(read: Callable[[int, int], Awaitable[Page[F]]], count: int) -> list[tuple[str, F]]:
    """Return up to `count` entries with their groups; `read` returns what is behind an id, up to a number."""
    found: list[tuple[str, F]] = []
    after: int | None = 0
    while after is not None and len(found) < count:
        page = await read(after, count - len(found))
        found += page.entries
        after = page.next
    return found


def show_event(text: str, *, as_json: bool) -> None:
    """Print the object of an event with what went wrong: as one line of JSON, or to be read, with tracebacks."""
    if as_json:
        show(visible_json(text))
        return
    members = json.loads(text)
    errors = members.pop("errors")
    for name, value in members.items():
        show(f"{name}: {visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))}")
    for failure in errors:
        _show_error(failure)


def option_time(option: str, text: str | None) -> datetime | None:
    """Return the time that an option says, if it was given."""
    return None if text is None else time_of(option, text)


def local_time(text: str) -> str:
    """Return a time as a table has it."""
    return datetime.fromisoformat(text).astimezone().isoformat(" ", "seconds")


def short_error(error: dict[str, Any] | None) -> str:
    """Return an error as a table has it."""
    if error is None:
        return ""
    text = visible(f"{error.get('type')}: {error.get('message')}")
    return text if len(text) <= MAX_ERROR else text[: MAX_ERROR - 1] + "…"


def _show_error(error: dict[str, Any]) -> None:
    attempt, time, node = error.get("attempt", "?"), error.get("time", ""), error.get("node", "")
    show(f"\nattempt {attempt}  {visible(str(time))}  {visible(str(node))}")
    for line in str(error.get("traceback") or f"{error.get('type')}: {error.get('message')}").splitlines():
        show(f"  {visible(line)}")
