"""The log as those who run a bus look at it: the newest events first, without payloads, and what topics there are.

Like the stewards it works on the store alone. One call looks at a bounded part of the log and says how to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from eventbus_fastapi.pipeline.matcher import Matcher
from eventbus_fastapi.pipeline.start import resolve_start
from eventbus_fastapi.store import Head, Store
from eventbus_fastapi.store.log_entries import LogEntry, TopicCount
from eventbus_fastapi.topics import check_pattern

PAGE = 1_000
"""Events that one statement looks at where only some topics are wanted."""
PAGES = 10
"""Statements of one call at most: then it answers with what it has."""
COUNTED = 10_000
"""Events at the end of the log whose topics are counted."""


class Listed(NamedTuple):
    """An event in a list, with the beginning of its payload."""

    entry: LogEntry
    beginning: bytes


class LogPage(NamedTuple):
    """A part of the log, newest first."""

    events: list[Listed]
    newer: int | None
    """Give it as `after` to see what is newer; None: there is nothing, as far as was looked."""
    older: int | None
    """Give it as `before` to see what is older; None: there is nothing."""
    head: Head


class Topics(NamedTuple):
    """The topics of the newest events."""

    topics: list[TopicCount]
    """Those with the most events first."""
    after: int
    """The events after this seq were counted."""
    head: Head


class LogView:
    """See the module's docstring.

    All raise `StoreUnavailable` where the database is away.
    """

    def __init__(self, store: Store, *, require: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._entries = store.entries
        self._require = require

    async def page(
        self,
        patterns: Sequence[str] = (),
        *,
        before: int | None = None,
        after: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
    ) -> LogPage:
        """Return up to `limit` events, the newest first.

        What is rare may give fewer, or none, with an `older` or `newer` to go on from: one call looks at 10,000 events.

        Args:
            patterns: their topics match any of these; none: they have any topic.
            before: the newest with a lower seq.
            after: instead, the oldest with a greater seq.
            since, until: they entered the log at this time or later, and before this one; aware.
            limit: at most so many.

        Raises:
            InvalidPattern, InvalidEvent: a pattern or a time cannot be used.
        """
        self._require()
        chosen = [check_pattern(pattern) for pattern in patterns]
        head = await self._store.head()
        low = max(head.first_seq - 1, 0 if since is None else await resolve_start(self._store, since))
        high = head.last_seq + 1 if until is None else await resolve_start(self._store, until) + 1
        matcher = None if not chosen or "#" in chosen else Matcher(chosen)
        if after is not None:
            found, reached = await self._find(matcher, max(low, after), high, limit, newest_first=False)
            found.reverse()
            bottom = max(low, after)
            older = bottom + 1 if bottom > low and bottom >= head.first_seq else None
            return LogPage(await self._with_beginnings(found), reached, older, head)
        top = high if before is None else min(high, before)
        found, reached = await self._find(matcher, low, top, limit, newest_first=True)
        newer = top - 1 if top < high else None
        return LogPage(await self._with_beginnings(found), newer, reached, head)

    async def topics(self, limit: int = 1_000) -> Topics:
        """Count the newest 10,000 events by topic."""
        self._require()
        head = await self._store.head()
        after = max(0, head.last_seq - COUNTED)
        return Topics(await self._entries.topics(after, limit), after, head)

    # --- parts ---

    async def _find(
        self, matcher: Matcher | None, after: int, before: int, limit: int, *, newest_first: bool
    ) -> tuple[list[LogEntry], int | None]:
        """Return what matches between two seqs, and the seq from which to go on; None: that is all.

        Each look has a range of seqs of its own: where the statistics of a database are young, it may look at all of
        a range, also for a few rows of it.
        """
        found: list[LogEntry] = []
        size = limit + 1 if matcher is None else PAGE
        for _ in range(PAGES):
            low, high = (
                (max(after, before - 1 - PAGE), before) if newest_first else (after, min(before, after + 1 + PAGE))
            )
            for entry in await self._entries.page(low, high, size, newest_first=newest_first):
                if matcher is not None and not matcher.matches(entry.topic):
                    continue
                if len(found) == limit:
                    return found, found[-1].seq
                found.append(entry)
            after, before = (after, low + 1) if newest_first else (high - 1, before)
            if before <= after + 1:
                return found, None
        return found, before if newest_first else after

    async def _with_beginnings(self, entries: Sequence[LogEntry]) -> list[Listed]:
        beginnings = await self._entries.beginnings([entry.seq for entry in entries])
        return [Listed(entry, beginnings.get(entry.seq, b"")) for entry in entries]
