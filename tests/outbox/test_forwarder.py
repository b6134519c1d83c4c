"""The forwarder: in order, under a lease, and with a bus that may be away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from eventbus_fastapi import Outbox
from eventbus_fastapi.errors import ConnectionLost, Forbidden, NotForwarded, PublishTooFast, StoreError
from eventbus_fastapi.events import Draft, Receipt
from eventbus_fastapi.pipeline import service
from eventbus_fastapi.pipeline.forwarder import Forwarder
from eventbus_fastapi.store import migrations
from tests.outbox.reading import publish
from tests.waiting import eventually


class Bus:
    """A bus as a forwarder sees it."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.errors: list[Exception] = []
        """What it answers instead, one after the other."""
        self.opens = asyncio.Event()
        self.opens.set()

    @property
    def got(self) -> list[int]:
        return [int(payload) for batch in self.batches for payload in batch]

    async def deliver(self, drafts: Sequence[Draft]) -> Sequence[Receipt]:
        await self.opens.wait()
        if self.errors:
            raise self.errors.pop(0)
        if len(drafts) and any(draft.topic == "secret" for draft in drafts):
            raise Forbidden("publishing to 'secret' is not granted")
        self.batches.append([draft.payload for draft in drafts])
        return [Receipt(draft.message_id, 1) for draft in drafts]


@pytest.fixture
def remote() -> Bus:
    return Bus()


def forwarder(outbox: Outbox, bus: Bus, **options: Any) -> Forwarder:
    return Forwarder(outbox.store, bus.deliver, **{"name": "service", "poll_interval": 0.05, **options})


async def test_a_run_forwards_a_batch_and_removes_it(outbox: Outbox, remote: Bus) -> None:
    await publish(outbox, 1, 2, 3)
    stage = forwarder(outbox, remote)
    await stage.run_once()

    assert remote.batches == [[b"1", b"2", b"3"]]
    assert (await outbox.figures()) == (0, 0.0, 0)
    await stage.run_once()
    assert len(remote.batches) == 1


async def test_what_the_bus_does_not_answer_stays(outbox: Outbox, remote: Bus) -> None:
    await publish(outbox, 1, 2)
    stage = forwarder(outbox, remote)
    remote.errors = [ConnectionLost("no connection"), StoreError("the database refused")]
    for _ in range(2):
        with pytest.raises(NotForwarded, match="has not answered for 2 events, which stay in the outbox"):
            await stage.run_once()
        assert (await outbox.figures()).waiting == 2

    await stage.run_once()
    assert remote.batches == [[b"1", b"2"]]


async def test_a_bus_that_is_asked_too_much_is_given_its_time(outbox: Outbox, remote: Bus) -> None:
    await publish(outbox, 1)
    remote.errors = [PublishTooFast(1_000, 0.01)]
    await forwarder(outbox, remote).run_once()

    assert remote.batches == [[b"1"]]


async def test_the_refused_are_found_by_halves(outbox: Outbox, remote: Bus) -> None:
    for number in range(20):
        await publish(outbox, number, topic="secret" if number in (3, 17) else "order.paid")
    await forwarder(outbox, remote).run_once()

    assert remote.got == [number for number in range(20) if number not in (3, 17)]
    assert [refused.code for refused in await outbox.refused()] == ["auth.forbidden", "auth.forbidden"]


async def test_a_second_forwarder_waits_and_takes_over_from_one_that_ends(outbox: Outbox, remote: Bus) -> None:
    first, second = forwarder(outbox, remote), forwarder(outbox, remote, lease=0.3)
    await first.run_once()
    await publish(outbox, 1)
    assert (await second.run_once() or 0) > 0
    assert (second.holds, remote.batches) == (False, [])

    await first.close()

    async def has_taken_over() -> bool:
        await second.run_once()
        return remote.batches == [[b"1"]]

    await eventually(has_taken_over)


async def test_a_second_one_takes_over_when_the_first_is_silent_for_its_lease(outbox: Outbox, remote: Bus) -> None:
    first, second = forwarder(outbox, remote, lease=0.2), forwarder(outbox, remote, lease=0.2)
    await first.run_once()
    await publish(outbox, 1)

    async def has_taken_over() -> bool:
        await second.run_once()
        return second.holds

    await eventually(has_taken_over)
    assert remote.batches == [[b"1"]]


async def test_one_that_was_frozen_removes_nothing_of_what_came_later(outbox: Outbox, remote: Bus) -> None:
    """Ids may be given again once an outbox was empty: what it had read would name other events by then."""
    await publish(outbox, 1, 2)
    first, second = forwarder(outbox, remote, lease=0.2), forwarder(outbox, remote)
    await first._hold()
    rows, _ = await outbox.store.read()

    async def has_taken_over() -> bool:
        await second.run_once()
        return second.holds

    await eventually(has_taken_over)
    await publish(outbox, 3, 4)
    assert not await outbox.store.remove(first._token, 0.2, [row[0] for row in rows])
    assert (await outbox.figures()).waiting == 2


async def test_the_lease_is_kept_while_the_bus_is_slow(outbox: Outbox, remote: Bus) -> None:
    await publish(outbox, 1)
    remote.opens.clear()
    first, second = forwarder(outbox, remote, lease=0.6), forwarder(outbox, remote, lease=0.6)
    running = asyncio.create_task(first.run_once())
    await eventually(lambda: first.holds)
    for _ in range(30):
        await second.run_once()
        assert not second.holds
        await asyncio.sleep(0.05)
    remote.opens.set()
    await running

    assert remote.batches == [[b"1"]]


async def test_whoever_forwards_tells_how_the_outbox_is(outbox: Outbox, remote: Bus) -> None:
    stage = forwarder(outbox, remote)
    await publish(outbox, 1, 2)
    await publish(outbox, 3, topic="secret")
    await stage.run_once()
    first = stage.meters.backlogs["service"]
    assert (first.waiting, first.oldest > 0, first.refused) == (3, True, 0)
    assert (stage.meters.forwarded, stage.meters.refused) == ({"service": 2}, {"service": 1})

    stage._next_look = 0.0
    await stage.run_once()
    assert stage.meters.backlogs == {"service": (0, 0.0, 1)}
    await stage.close()
    assert stage.meters.backlogs == {}


@pytest.mark.databases("postgresql", "mysql")
async def test_tables_that_are_missing_are_said_once_and_waited_for(
    database_url: str, remote: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox(database_url)
    stage = forwarder(outbox, remote)
    running = service.start(stage, stage.meters.failures)
    await eventually(lambda: stage.meters.failures["forwarder"] >= 2)
    await migrations.run(outbox.settings, outbox.store.tables, migrations.upgrade)
    await publish(outbox, 1)
    await eventually(lambda: remote.got == [1])
    await service.end({stage: running})
    await stage.close()
    await outbox.stop()

    said = [record for record in caplog.records if "eventbus migrate upgrade --outbox URL" in record.getMessage()]
    assert [(record.levelname, record.exc_info) for record in said] == [("WARNING", None)]


async def test_a_delay_that_is_over_is_none(outbox: Outbox) -> None:
    got: list[Draft] = []

    async def deliver(drafts: Sequence[Draft]) -> Sequence[Receipt]:
        got.extend(drafts)
        return []

    await publish(outbox, 1, delay=0.000_001)
    await publish(outbox, 2, delay=3_600)
    await asyncio.sleep(0.01)
    await Forwarder(outbox.store, deliver, name="service", poll_interval=1).run_once()

    assert got[0].delay is None
    assert got[1].delay is not None
    assert 3_590_000_000 < got[1].delay <= 3_600_000_000
