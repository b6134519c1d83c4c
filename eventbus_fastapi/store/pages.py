"""Long lists looked through page by page: what the databases cannot all look for is looked for here, in bounded steps.

Patterns, tags and the types of errors are such things. A list is read without payloads, by id.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from eventbus_fastapi import codec
from eventbus_fastapi.topics import matches

PAGE = 200
"""Rows that are looked at, or changed in one transaction, at a time."""
PAGES = 50
"""Pages that one call looks at before it returns with what it has."""


class Entry(Protocol):
    """A row of such a list."""

    @property
    def id(self) -> int: ...
    @property
    def topic(self) -> str: ...
    @property
    def tags(self) -> Sequence[str]: ...
    @property
    def errors(self) -> Sequence[dict[str, Any]]: ...


E = TypeVar("E", bound=Entry)


async def find(
    read: Callable[[int], Awaitable[list[E]]], accepts: Callable[[E], bool], *, after: int, limit: int
) -> tuple[list[E], int | None]:
    """Return up to `limit` entries from behind the id `after` that are accepted, and the id to go on after.

    `read` returns the page behind an id. What is rare may give fewer, or none, with an id to go on after; None: there
    are no more.
    """
    found: list[E] = []
    for _ in range(PAGES):
        page = await read(after)
        for entry in page:
            if accepts(entry):
                found.append(entry)
            if len(found) == limit:
                return found, None if entry is page[-1] and len(page) < PAGE else entry.id
        if len(page) < PAGE:
            return found, None
        after = page[-1].id
    return found, after


def is_meant(entry: Entry, *, patterns: Sequence[str], tags: Sequence[str], error: str | None) -> bool:
    """Say whether an entry has a topic that matches any of the patterns (none: any), all of the tags, and a last error
    of a type, named with its module or without (None: of any, or no error).
    """
    if patterns and not any(matches(pattern, entry.topic) for pattern in patterns):
        return False
    if not set(tags) <= set(entry.tags):
        return False
    if error is None:
        return True
    kind = str(entry.errors[-1].get("type")) if entry.errors else ""
    return kind == error or kind.endswith(f".{error}")


def tags_in(metadata: str | None) -> tuple[str, ...]:
    """Return the tags in stored metadata."""
    return () if metadata is None else codec.tags_of(codec.load_object(metadata))
