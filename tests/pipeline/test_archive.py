"""A queue's archive: how the events of its handlers ended, as the group keeps it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from eventbus_fastapi import BusSession, Discard, EventBus, Fixed, Retry, Snooze, archive_filter
from eventbus_fastapi.errors import InvalidGroup, InvalidHandler, NotFound
from eventbus_fastapi.pipeline.handlers import HandlerOptions
from eventbus_fastapi.pipeline.steward import Steward
from eventbus_fastapi.settings import ArchiveMode
from eventbus_fastapi.store.archive import ArchiveEntry
from tests.waiting import eventually

Attempted = dict[str, int]
OpenBus = Callable[[], Awaitable[EventBus]]


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[EventBus]:
    bus = EventBus(f"sqlite+aiosqlite:///{tmp_path}/eventbus.db")
    yield bus
    await bus.stop()


def outcome_of(kind: str, attempted: Attempted) -> Retry | Snooze | Discard | None:
    """Do as the payload says; `flaky` fails once, `later` waits once."""
    attempted[kind] = attempted.get(kind, 0) + 1
    match kind, attempted[kind]:
        case "unwanted", _:
            return Discard("nobody reads these")
        case "broken", _:
            raise ValueError("no")
        case "flaky", 1:
            return Retry(after=0, reason="not yet")
        case "later", 1:
            return Snooze(0.001)
    return None


KINDS = ("good", "flaky", "later", "unwanted", "broken")
ALL = {"good": "acked", "flaky": "acked", "later": "acked", "unwanted": "discarded", "broken": "dead"}
FAILED = {"flaky": "acked", "unwanted": "discarded", "broken": "dead"}


@pytest.mark.parametrize("is_transactional", [False, True])
@pytest.mark.parametrize(("mode", "kept"), [("all", ALL), ("failed", FAILED), ("none", {})])
async def test_a_queue_says_which_endings_of_its_events_are_kept(
    bus: EventBus, mode: ArchiveMode, kept: dict[str, str], is_transactional: bool
) -> None:
    attempted: Attempted = {}
    bus.queue("mail", archive=mode)
    options: HandlerOptions = {"group": "g", "queue": "mail", "max_retries": 1, "backoff": Fixed(0)}
    if is_transactional:

        @bus.handler("job", **options)
        async def handle_in_transaction(kind: str, session: BusSession) -> Retry | Snooze | Discard | None:
            return outcome_of(kind, attempted)

    else:

        @bus.handler("job", **options)
        async def handle(kind: str) -> Retry | Snooze | Discard | None:
            return outcome_of(kind, attempted)

    await bus.start()
    await bus.workers.start()
    await bus.publish_many([("job", kind) for kind in KINDS])
    await _until_done(bus)

    entries = await _entries(bus.groups)
    assert {KINDS[entry.seq - 1]: entry.outcome for entry in entries} == kept
    for entry in entries:
        assert entry.duration is not None
        assert 0 <= entry.duration < 30_000_000
        assert entry.owner == bus.node.consumers.owner
    told = {KINDS[entry.seq - 1]: (entry.attempt, [error["message"] for error in entry.errors]) for entry in entries}
    expected = {
        "good": (1, []),
        "flaky": (2, ["not yet"]),
        "later": (1, []),
        "unwanted": (1, ["nobody reads these"]),
        "broken": (2, ["no", "no"]),
    }
    assert told == {kind: expected[kind] for kind in kept}


async def test_one_is_shown_with_its_group_and_event(bus: EventBus) -> None:
    bus.queue("default", archive="all")

    @bus.handler("job", group="g")
    async def handle(kind: str) -> Discard:
        return Discard("unread")

    await bus.start()
    await bus.workers.start()
    await bus.publish("job", "x", tags=["mail"])
    await _until_done(bus)

    (entry,) = await _entries(bus.groups)
    name, archived = await bus.groups.archived(entry.id)
    assert (name, archived.entry, archived.message.payload) == ("g", entry, "x")
    assert (entry.tags, entry.errors[0]["type"]) == (("mail",), "Discard")
    with pytest.raises(NotFound, match="nothing in the archive has the id 4711"):
        await bus.groups.archived(4711)


async def test_a_change_of_what_a_group_keeps_reaches_a_node_that_serves_it(bus: EventBus) -> None:
    @bus.handler("job", group="g")
    async def handle(kind: str) -> None: ...

    await bus.start()
    await bus.workers.start()
    await bus.groups.declare("g", ["job"], archive="all", max_attempts=10)

    async def is_kept() -> bool:
        await bus.publish("job", "x")
        return bool(await _entries(bus.groups))

    await eventually(is_kept, timeout=10)


async def test_a_filter_that_cannot_be_used_is_refused(bus: EventBus) -> None:
    with pytest.raises(InvalidGroup, match="outcome must be one of acked, discarded, dead, got 'lost'"):
        archive_filter(outcome="lost")  # type: ignore[arg-type]
    with pytest.raises(InvalidGroup, match="finished_after must have a time zone"):
        archive_filter(finished_after=datetime(2026, 1, 1))  # noqa: DTZ001 - on purpose
    with pytest.raises(InvalidHandler, match="archive must be one of all, failed, none, got 'some'"):
        bus.queue("mail", archive="some")  # type: ignore[arg-type]
    await bus.start()
    with pytest.raises(InvalidGroup, match="archive must be one of all, failed, none, got 'some'"):
        await bus.groups.declare("g", ["#"], archive="some")  # type: ignore[arg-type]


async def test_a_filter_is_what_was_said() -> None:
    time = datetime(2026, 1, 1, tzinfo=UTC)
    wanted = archive_filter("a", "a", outcome="dead", error="E", finished_after=time, tags=["mail"])
    assert (wanted.patterns, wanted.outcome, wanted.error, wanted.tags) == (("a",), "dead", "E", ("mail",))
    assert wanted.since == (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


async def _entries(steward: Steward) -> list[ArchiveEntry]:
    return [entry for _, entry in (await steward.archive("g")).entries]


async def _until_done(bus: EventBus) -> None:
    last = (await bus.head()).last_seq

    async def is_done() -> bool:
        group, figures = await bus.groups.group("g")
        return group.cursor >= last and (figures.in_flight, figures.retries) == (0, 0)

    await eventually(is_done, timeout=30)
