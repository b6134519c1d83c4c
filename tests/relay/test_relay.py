"""What a relay does with what a broker says, and with its lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from eventbus_fastapi import EventBus
from eventbus_fastapi.backoff import FullJitter
from eventbus_fastapi.errors import InvalidEvent, InvalidRelay
from eventbus_fastapi.relay.destination import CONFIRMED, refused, unsent
from tests.relay.scripted import LOST, Scripted, drained, once, relay_of
from tests.telemetry.reading import scrape
from tests.waiting import eventually


@pytest.fixture
async def other(bus: EventBus, tmp_path: Path) -> AsyncIterator[EventBus]:
    """Another node on the bus's database."""
    async with EventBus(f"sqlite+aiosqlite:///{tmp_path}/bus.db", lease=1.0) as other:
        yield other


async def publish(bus: EventBus, count: int, topic: str = "user.created") -> None:
    await bus.publish_many([(topic, {"n": number}) for number in range(count)])


async def test_events_that_match_arrive_in_the_order_of_the_log(bus: EventBus) -> None:
    await bus.publish_many([("user.created", 1), ("other", 2), ("user.deleted", 3)])
    broker = Scripted()
    relay = relay_of(bus, broker, "user.#")
    await relay.start()
    await drained(bus)
    assert broker.seqs == [1, 3]
    await bus.publish("user.created", 4)
    await eventually(lambda: broker.seqs == [1, 3, 4])
    assert await relay.join(5)
    assert broker.is_closed


async def test_a_relay_is_a_group_that_is_ordered_by_the_log_and_goes_on_where_it_was(bus: EventBus) -> None:
    await publish(bus, 3)
    broker = Scripted()
    relay = relay_of(bus, broker)
    await relay.start()
    await drained(bus)
    await relay.join(5)
    group = (await bus.groups.group("relay")).group
    assert (group.ordered_by, group.cursor, group.archive) == ("log", 3, "failed")
    await publish(bus, 2)
    await relay.start()
    await drained(bus)
    await relay.join(5)
    assert broker.seqs == [1, 2, 3, 4, 5]


async def test_a_broker_that_is_away_stops_the_relay_and_what_waits_goes_on_by_itself(bus: EventBus) -> None:
    broker = Scripted()
    broker.is_away = True
    relay = relay_of(bus, broker)
    await relay.start()
    await publish(bus, 5)
    assert not relay.is_broker_up
    assert relay.is_alive
    assert (await bus.groups.group("relay")).figures.lag == 5
    broker.is_away = False
    await drained(bus)
    await eventually(lambda: relay.is_broker_up)
    assert broker.copies == [(seq, 1) for seq in range(1, 6)]
    await relay.join(5)


async def test_what_was_not_sent_is_sent_again_as_the_same_attempt_and_leaves_no_record(bus: EventBus) -> None:
    await publish(bus, 4)
    broker = Scripted()
    broker.answer = once(unsent("full"), 2, 3, 4)
    relay = relay_of(bus, broker)
    await relay.start()
    await drained(bus)
    assert broker.copies == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert (await bus.groups.archive("relay")).entries == []
    await relay.join(5)


async def test_a_copy_after_a_lost_confirm_says_so_and_the_record_does(bus: EventBus) -> None:
    await publish(bus, 4)
    broker = Scripted()
    broker.answer = once(LOST, 2, 3)
    relay = relay_of(bus, broker)
    await relay.start()
    await drained(bus)
    assert broker.copies == [(1, 1), (2, 1), (3, 1), (4, 1), (2, 2), (3, 2)]
    endings = [entry for _, entry in (await bus.groups.archive("relay")).entries]
    assert [(entry.seq, entry.outcome, entry.attempt, entry.errors[0]["type"]) for entry in endings] == [
        (2, "acked", 2, "ConfirmLost"),
        (3, "acked", 2, "ConfirmLost"),
    ]
    assert bus.node.meters.relayed["relay", "resent"] == 2
    await relay.join(5)


async def test_what_can_never_be_sent_becomes_a_dead_letter_and_the_log_goes_on(bus: EventBus) -> None:
    await publish(bus, 3)
    broker = Scripted()
    broker.answer = once(refused("no queue takes it"), 2)
    relay = relay_of(bus, broker)
    await relay.start()
    await drained(bus)
    assert broker.seqs == [1, 3]
    letter = await bus.groups.dead_letter("relay", 2)
    assert [(error["type"], error["message"]) for error in letter.errors] == [("Refused", "no queue takes it")]
    await bus.groups.retry("relay", [2])
    await eventually(lambda: broker.seqs == [1, 3, 2])
    assert broker.arrived[-1].is_revived
    assert not broker.arrived[0].is_revived
    await relay.join(5)


async def test_what_is_kept_of_lost_confirms_has_an_end_and_a_dead_letter_that_is_tried_again_stays_one(
    bus: EventBus,
) -> None:
    await publish(bus, 1)
    broker = Scripted()
    broker.answer = once(refused("no queue takes it"), 1)
    relay = relay_of(bus, broker)
    relay._pauses = FullJitter(base=0.001, cap=0.001)
    await relay.start()
    await drained(bus)
    broker.answer = lambda parcel: LOST
    await bus.groups.retry("relay", [1])
    await eventually(lambda: len(broker.arrived) > 40)
    assert len(relay._batch[0].errors) < 20
    broker.answer = lambda parcel: CONFIRMED
    await drained(bus)
    assert all(parcel.is_revived for parcel in broker.arrived)
    await relay.join(5)


async def test_of_two_relays_of_a_name_one_works_and_the_other_takes_over_when_it_ends(
    bus: EventBus, other: EventBus
) -> None:
    first, second = Scripted(), Scripted()
    relays = [relay_of(bus, first), relay_of(other, second)]
    for relay in relays:
        await relay.start()
    broken = relays[0]
    first.gate.clear()
    second.gate.clear()
    await publish(bus, 10)
    await eventually(lambda: first.arrived or second.arrived)
    busy, idle = (first, second) if first.arrived else (second, first)
    await publish(bus, 10)
    assert idle.arrived == []
    busy.gate.set()
    await drained(bus)
    broken = relays[0] if busy is first else relays[1]
    assert idle.arrived == []
    await broken.join(5)
    idle.gate.set()
    await publish(bus, 5)
    await drained(bus)
    assert busy.seqs + idle.seqs == list(range(1, 26))
    for relay in relays:
        await relay.join(5)


async def test_a_stop_gives_back_what_is_on_its_way_and_its_next_copy_says_so(bus: EventBus) -> None:
    await publish(bus, 3)
    broker = Scripted()
    broker.gate.clear()
    relay = relay_of(bus, broker)
    await relay.start()
    await eventually(lambda: broker.arrived)
    assert not await relay.join(0.1)
    waiting = await bus.groups.retries("relay")
    assert [(item.seq, item.attempt, item.errors[0]["type"]) for item in waiting] == [
        (1, 1, "ConfirmLost"),
        (2, 1, "ConfirmLost"),
        (3, 1, "ConfirmLost"),
    ]
    broker.gate.set()
    await relay.start()
    await drained(bus)
    assert broker.copies == [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2)]
    await relay.join(5)


async def test_who_has_lost_its_lease_sends_nothing_more(bus: EventBus, other: EventBus) -> None:
    """Its group is reset while a batch is on its way: what it holds is nobody's any more."""
    await publish(bus, 2_500)
    broker = Scripted()
    broker.gate.clear()
    relay = relay_of(bus, broker)
    await relay.start()
    await eventually(lambda: broker.arrived)
    sent = len(broker.arrived)
    await bus.groups.reset("relay", 2_400)
    settler = bus.node.consumers.settler
    await eventually(lambda: settler.held == 0, 5)  # the next renewal finds it out
    broker.gate.set()
    await drained(bus)
    assert broker.seqs == [*range(1, sent + 1), *range(2_401, 2_501)]
    await relay.join(5)


async def test_a_relay_whose_group_is_deleted_ends_and_says_so(bus: EventBus, caplog: pytest.LogCaptureFixture) -> None:
    broker = Scripted()
    relay = relay_of(bus, broker)
    await relay.start()
    await bus.groups.delete("relay")
    await eventually(lambda: not relay.is_alive)
    assert "its group was deleted" in caplog.text
    await relay.join(5)


async def test_a_relay_whose_group_was_deleted_can_be_started_again(bus: EventBus) -> None:
    await publish(bus, 2)
    broker = Scripted()
    relay = relay_of(bus, broker)
    await relay.start()
    await drained(bus)
    await bus.groups.delete("relay")
    await eventually(lambda: not relay.is_alive)
    await relay.start()
    await drained(bus)
    assert broker.seqs == [1, 2, 1, 2]
    await relay.join(5)


async def test_a_pause_holds_it_up(bus: EventBus) -> None:
    broker = Scripted()
    relay = relay_of(bus, broker)
    await relay.start()
    await bus.groups.pause("relay")
    await eventually(lambda: all(consumer.group.is_paused for consumer in bus.node.consumers))
    await publish(bus, 3)
    assert broker.arrived == []
    await bus.groups.resume("relay")
    await drained(bus)
    assert broker.seqs == [1, 2, 3]
    await relay.join(5)


async def test_metrics_tell_what_was_relayed_and_whether_the_broker_is_there(bus: EventBus) -> None:
    await publish(bus, 4)
    broker = Scripted()
    broker.answer = once(LOST, 2)
    relay = relay_of(bus, broker)
    await relay.start()
    await drained(bus)
    found = await scrape(bus)
    assert found.of("eventbus_relayed_total", relay="relay", result="confirmed") == 4
    assert found.of("eventbus_relayed_total", relay="relay", result="resent") == 1
    assert found.of("eventbus_relayed_total", relay="relay", result="refused") == 0
    assert found.of("eventbus_relay_broker_up", relay="relay") == 1
    await relay.join(5)


async def test_relays_begin_and_end_with_the_workers_that_serve_all_queues(tmp_path: Path) -> None:
    bus = EventBus(f"sqlite+aiosqlite:///{tmp_path}/bus.db", workers=True)
    broker = Scripted()
    relay = relay_of(bus, broker)
    bus.workers.companions.append(relay)
    async with bus:
        assert relay.is_alive
        assert bus.workers.groups == ["relay"]
        await bus.publish("a", 1)
        await eventually(lambda: broker.seqs == [1])
    assert (relay.is_alive, broker.is_closed) == (False, True)


async def test_a_bus_whose_relay_cannot_begin_does_not_start_and_leaves_nothing_running(tmp_path: Path) -> None:
    bus = EventBus(f"sqlite+aiosqlite:///{tmp_path}/bus.db", workers=True)
    bus.workers.companions.append(relay_of(bus, Scripted(), start=-1))
    with pytest.raises(InvalidEvent, match="start must be"):
        await bus.start()
    assert not bus.node.is_running


async def test_a_relay_that_is_started_twice_at_once_runs_once(bus: EventBus) -> None:
    relay = relay_of(bus, Scripted())
    await asyncio.gather(relay.start(), relay.start())
    running = [task for task in asyncio.all_tasks() if task.get_name() == "eventbus-relay-relay"]
    assert len(running) == 1
    await relay.join(5)


def test_a_form_of_cloudevents_that_is_none_is_refused() -> None:
    bus = EventBus("sqlite+aiosqlite://")
    with pytest.raises(InvalidRelay, match="cloudevents must be binary or structured, got 'json'"):
        bus.relay("redis://127.0.0.1:1", "a", cloudevents="json")  # type: ignore[arg-type]


async def test_two_relays_of_a_name_in_one_bus_are_refused(bus: EventBus) -> None:
    bus.relay("redis://127.0.0.1:1", "a", name="same")
    with pytest.raises(InvalidRelay, match="has a relay 'same' already"):
        bus.relay("redis://127.0.0.1:1", "b", name="same")
