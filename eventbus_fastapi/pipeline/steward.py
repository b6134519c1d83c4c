"""The steward: looks after groups for those who run a bus. How they are, what waits and what died; pause, reset, retry.

It works on the store alone, so that it needs no running node: a node that serves a group learns of a change when its
next claim fails, or within a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NamedTuple, TypeVar, get_args

from eventbus_fastapi.errors import GroupConflict, GroupNotFound, InvalidGroup, NotFound, quote
from eventbus_fastapi.pipeline.start import Start, resolve_start
from eventbus_fastapi.store import Store
from eventbus_fastapi.store.archive import ArchivedEvent, ArchiveEntry, ArchiveFilter
from eventbus_fastapi.store.dead_letters import Changed, DeadEntry, DeadFilter
from eventbus_fastapi.store.group import ArchiveMode, DeadLetter, Figures, Group, OrderedBy, WaitingRetry
from eventbus_fastapi.store.group_name import check_group_name
from eventbus_fastapi.store.limits import RateLimit, limit_period
from eventbus_fastapi.store.pages import PAGE
from eventbus_fastapi.topics import check_pattern

DEFAULT_MAX_ATTEMPTS = 10
LARGEST_MAX_ATTEMPTS = 2**31 - 1


class GroupStatus(NamedTuple):
    """A group and how it is doing."""

    group: Group
    figures: Figures


class BlockedKey(NamedTuple):
    """A key of a group that is ordered by key, whose events wait for one of them."""

    key: str
    first_seq: int
    """The event that is tried again, or is next."""
    waiting: int
    """Events of this key that wait, the first one too."""


class DeadLetters(NamedTuple):
    """A page of dead letters."""

    entries: list[tuple[str, DeadEntry]]
    """Each with the name of its group."""
    next: int | None
    """The id to go on after; None: there are no more."""


class Endings(NamedTuple):
    """A page of the archive."""

    entries: list[tuple[str, ArchiveEntry]]
    """Each with the name of its group."""
    next: int | None
    """The id to go on after; None: there are no more."""


E = TypeVar("E", DeadEntry, ArchiveEntry)


class Steward:
    """See the module's docstring.

    All raise `GroupNotFound` where a group is named that is not there, and `StoreUnavailable` where the database is
    away.
    """

    def __init__(self, store: Store, *, require: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._groups = store.groups
        self._require = require

    # --- groups ---

    async def groups(self) -> list[GroupStatus]:
        """Return all groups, by name."""
        self._require()
        groups = await self._groups.all()
        figures = await self._groups.all_figures() if groups else {}
        return [GroupStatus(group, figures[group.id]) for group in groups if group.id in figures]  # not deleted since

    async def group(self, name: str) -> GroupStatus:
        """Return a group and how it is doing."""
        self._require()
        return await self._status(await self._groups.get(name))

    async def declare(
        self,
        name: str,
        patterns: Sequence[str],
        *,
        start: Start = "now",
        ordered_by: OrderedBy | None = None,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        max_in_flight: int | None = None,
        rate_limit: str | None = None,
        archive: ArchiveMode = "none",
    ) -> GroupStatus:
        """Make a group that reads from `start`; one that exists keeps its place, and takes over the rest.

        `max_in_flight`: events that all its readers together may hold at the same time. `rate_limit`: the name of a
        limit, of which each attempt takes a permit.

        Raises:
            InvalidGroup, InvalidPattern, InvalidEvent: something of it cannot be used.
            GroupConflict: the log does not reach to `start`, or no rate limit has this name.
        """
        self._require()
        chosen = tuple(dict.fromkeys(check_pattern(pattern) for pattern in patterns))
        if not chosen:
            raise InvalidGroup("a group needs at least one pattern; '#' is all topics")
        if ordered_by not in ("key", None):
            raise InvalidGroup(f"ordered_by must be 'key' or None, got {quote(ordered_by)}")
        if type(max_attempts) is not int or not 1 <= max_attempts <= LARGEST_MAX_ATTEMPTS:
            raise InvalidGroup(f"max_attempts must be an int ≥ 1, got {quote(max_attempts)}")
        if max_in_flight is not None and (type(max_in_flight) is not int or not 1 <= max_in_flight < 2**31):
            raise InvalidGroup(f"max_in_flight must be an int ≥ 1, or None, got {quote(max_in_flight)}")
        if rate_limit is not None and rate_limit not in {limit.name for limit in await self._groups.limits.all()}:
            raise GroupConflict(f"there is no rate limit {quote(rate_limit)}")
        if archive not in get_args(ArchiveMode):
            raise InvalidGroup(f"archive must be one of {', '.join(get_args(ArchiveMode))}, got {quote(archive)}")
        group = await self._groups.ensure(
            check_group_name(name),
            chosen,
            after=await self._place(start),
            ordered_by=ordered_by,
            max_attempts=max_attempts,
            max_in_flight=max_in_flight,
            rate_limit=rate_limit,
            archive=archive,
            is_declared=True,
        )
        return await self._status(group)

    async def pause(self, name: str) -> None:
        """Hand out nothing more of a group; what is in flight may be settled."""
        self._require()
        await self._groups.pause(name)

    async def resume(self, name: str) -> None:
        """End a pause."""
        self._require()
        await self._groups.resume(name)

    async def reset(self, name: str, start: Start) -> int:
        """Have a group read from elsewhere; return the seq after which it does.

        What is in flight or waits for a retry is forgotten, and whoever holds it cannot settle it any more. Dead
        letters stay.

        Raises:
            InvalidGroup, InvalidEvent: `start` is beyond the log, or no start.
        """
        self._require()
        await self._groups.get(name)
        after = await self._place(start)
        await self._groups.reset(name, after)
        return after

    async def delete(self, name: str) -> None:
        """Forget a group with its place, its retries, its dead letters and its archive."""
        self._require()
        await self._groups.delete(name)

    # --- rate limits ---

    async def rate_limits(self) -> list[RateLimit]:
        """Return all rate limits, by name."""
        self._require()
        return await self._groups.limits.all()

    async def set_rate_limit(self, name: str, permits: int, per: float | timedelta) -> RateLimit:
        """Make a limit of so many attempts in any period of `per` seconds, or change it; it holds at once, everywhere.

        A program that says `EventBus.rate_limit` says it again when its workers start.

        Raises:
            InvalidGroup: it cannot be a limit.
        """
        self._require()
        limit = RateLimit(name, permits, limit_period(name, per))
        await self._groups.limits.declare(limit)
        return limit

    # --- what waits ---

    async def retries(self, name: str, *, after: int = 0, limit: int = 100) -> list[WaitingRetry]:
        """Return what waits for another attempt or is held for it, with a seq after `after`, by seq."""
        self._require()
        return await self._groups.retries(await self._groups.get(name), after=after, limit=limit)

    async def blocked_keys(self, name: str, *, limit: int = 100) -> list[BlockedKey]:
        """Return keys of a group ordered by key that wait for an event to be settled, those blocked longest first."""
        self._require()
        group = await self._groups.get(name)
        if group.ordered_by != "key":
            return []
        return [BlockedKey(*row) for row in await self._groups.blocked_keys(group, limit)]

    # --- dead letters ---

    async def dead_letters(
        self, name: str | None = None, wanted: DeadFilter | None = None, *, after: int = 0, limit: int = 100
    ) -> DeadLetters:
        """Return dead letters of a group, or of all groups, without payloads, in the order in which they died.

        `after` is an id of such a letter, exclusive. What is rare may give fewer than `limit`, or none, with a `next`
        to go on after: one call looks at a part of them.
        """
        self._require()
        group = None if name is None else await self._groups.get(name)
        page = await self._store.dead_letters.find(group, wanted or DeadFilter(), after=after, limit=limit)
        return DeadLetters(await self._named(group, page.entries), page.next)

    async def dead_letter(self, name: str, seq: int) -> DeadLetter:
        """Return one with its payload and all its errors.

        Raises:
            NotFound: the group has no dead letter of this seq.
        """
        self._require()
        return await self._groups.dead_letter(await self._groups.get(name), seq)

    async def retry(self, name: str, seqs: Sequence[int]) -> int:
        """Have dead letters tried again at once in their group, with all their attempts; return how many there were.

        Their TTL is forgotten; the errors so far stay on record.
        """
        self._require()
        group = await self._groups.get(name)
        return sum([await self._groups.revive(group, chunk) for chunk in _chunks(seqs)])

    async def retry_matching(self, name: str, wanted: DeadFilter, *, after: int = 0) -> Changed:
        """Do as `retry` with those that are meant, from behind an id.

        One call looks at a part of them and tells how to go on.
        """
        self._require()
        return await self._store.dead_letters.revive(await self._groups.get(name), wanted, after=after)

    async def discard(self, name: str, seqs: Sequence[int]) -> int:
        """Forget dead letters; return how many there were."""
        self._require()
        group = await self._groups.get(name)
        return sum([await self._groups.discard(group, chunk) for chunk in _chunks(seqs)])

    async def discard_matching(self, name: str, wanted: DeadFilter, *, after: int = 0) -> Changed:
        """Do as `discard` with those that are meant, from behind an id; see `retry_matching`."""
        self._require()
        return await self._store.dead_letters.discard(await self._groups.get(name), wanted, after=after)

    # --- the archive ---

    async def archive(
        self, name: str | None = None, wanted: ArchiveFilter | None = None, *, after: int = 0, limit: int = 100
    ) -> Endings:
        """Return how events have ended in a group, or in all groups, without payloads, in the order of their ids.

        `after` is an id of such an ending, exclusive. What is rare may give fewer than `limit`, or none, with a `next`
        to go on after: one call looks at a part of them.
        """
        self._require()
        group = None if name is None else await self._groups.get(name)
        page = await self._store.archive.find(group, wanted or ArchiveFilter(), after=after, limit=limit)
        return Endings(await self._named(group, page.entries), page.next)

    async def archived(self, ending_id: int) -> tuple[str, ArchivedEvent]:
        """Return the group of an ending, and the ending with the event and all its errors.

        Raises:
            NotFound: nothing in the archive has this id.
        """
        self._require()
        found = await self._store.archive.get(ending_id)
        try:
            group = await self._groups.get_by_id(found.entry.group_id)
        except GroupNotFound as exc:
            raise NotFound(f"nothing in the archive has the id {ending_id}") from exc
        return group.name, found

    # --- parts ---

    async def _named(self, group: Group | None, entries: Sequence[E]) -> list[tuple[str, E]]:
        """Return entries with the names of their groups. One that was deleted in between has none, and no entries."""
        names = {each.id: each.name for each in (await self._groups.all() if group is None else [group])}
        return [(names[entry.group_id], entry) for entry in entries if entry.group_id in names]

    async def _place(self, start: Start) -> int:
        head = await self._store.head()
        after = await resolve_start(self._store, start, head)
        if after > head.last_seq:
            raise GroupConflict(f"a group cannot read after seq {after}: the log ends at {head.last_seq}")
        return after

    async def _status(self, group: Group) -> GroupStatus:
        return GroupStatus(group, await self._groups.figures(group))


def _chunks(seqs: Sequence[int]) -> list[Sequence[int]]:
    return [seqs[start : start + PAGE] for start in range(0, len(seqs), PAGE)]
