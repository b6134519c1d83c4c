"""Lists that are in memory, a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from eventbus_fastapi.dashboard.forms import Fields

T = TypeVar("T")

PAGE = 50
"""Entries of a page."""


class Page(NamedTuple, Generic[T]):
    """A part of a list."""

    entries: Sequence[T]
    total: int
    first: int
    """The number of its first entry, from 1."""
    previous: int | None
    """The number of the page before; None: there is none."""
    next: int | None


def page_of(entries: Sequence[T], query: Fields | None) -> Page[T]:
    """Return the page that a query asks for; beyond the last one it is the last one."""
    pages = max(1, -(-len(entries) // PAGE))
    asked = 1 if query is None else query.integer("page", 1, 1_000_000) or 1
    number = min(asked, pages)
    start = (number - 1) * PAGE
    return Page(
        entries[start : start + PAGE],
        len(entries),
        start + 1,
        number - 1 if number > 1 else None,
        number + 1 if number < pages else None,
    )
