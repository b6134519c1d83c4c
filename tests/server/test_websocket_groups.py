"""Groups over `/ws`: members compete, hold no more than their credit, and settle what they hold or lose it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.requests import HTTPConnection

from eventbus_fastapi.auth import Principal
from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store.group import DeadLetter
from tests.server.sockets import Peer, ServedBus, has_unread, is_left_alone, publish_until, serving_bus
from tests.serving import serving
from tests.waiting import eventually

NodeFactory = Callable[[], Awaitable[ServedBus]]


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[ServedBus]:
    async with serving_bus(tmp_path) as served:
        yield served


@pytest.fixture
async def open_node(own_tables: dict[str, Any]) -> AsyncIterator[NodeFactory]:
    """Serve a node of its own on the test's tables."""
    settings = Settings(**own_tables)
    async with contextlib.AsyncExitStack() as stack:

        async def open_node() -> ServedBus:
            node = EventBus(settings=settings)
            app = FastAPI()
            app.include_router(node.router())
            return ServedBus(node, await stack.enter_async_context(serving(app)))

        yield open_node


async def join(peer: Peer, **options: Any) -> dict[str, Any]:
    """Become a member of the group `sync`, and return the answer."""
    if not peer.sizes:
        await peer.next_of("welcome")
    answer = await peer.ask("subscribe", **{"id": 1, "sub": 1, "pattern": "user.*", "group": "sync", **options})
    assert answer["type"] == "ok", answer
    return answer


async def publish(bus: ServedBus, count: int, first: int = 0) -> list[int]:
    """Publish events and return their seqs."""
    receipts = await bus.bus.publish_many([("user.created", first + number) for number in range(count)])
    return [receipt.seq or 0 for receipt in receipts]


async def dead_letters(bus: ServedBus) -> list[DeadLetter]:
    groups = bus.bus.node.store.groups
    return await groups.dead_letters(await groups.get("sync"))


async def in_flight(bus: ServedBus) -> tuple[int, int]:
    """How many events of the group are held, and how many wait for another attempt."""
    groups = bus.bus.node.store.groups
    figures = await groups.figures(await groups.get("sync"))
    return figures.in_flight, figures.retries


# --- joining -------------------------------------------------------------------------------------


async def test_the_answer_tells_the_group_and_its_place_in_the_member_s_terms(bus: ServedBus) -> None:
    async with bus.v1() as member:
        assert await join(member, max_attempts=3, credit=5, ack_wait=2) == {
            "type": "ok",
            "id": 1,
            "sub": 1,
            "group": "sync",
            "patterns": ["user.*"],
            "max_attempts": 3,
            "created": True,
            "credit": 5,
            "ack_wait": 2,
        }


async def test_a_group_keeps_its_own_patterns_whatever_a_later_member_asks_for(bus: ServedBus) -> None:
    async with bus.v1() as first, bus.v1() as second:
        await join(first, max_attempts=3)
        answer = await join(second, pattern="other.*", max_attempts=5)
    assert (answer["created"], answer["patterns"], answer["max_attempts"]) == (False, ["user.*"], 3)
    assert (answer["credit"], answer["ack_wait"]) == (100, 30)


@pytest.mark.parametrize(("start", "expected"), [({"from": "earliest"}, 1), ({"after": 2}, 3), ({}, 4)])
async def test_a_group_begins_where_its_first_member_says(bus: ServedBus, start: dict[str, Any], expected: int) -> None:
    await publish(bus, 3)
    async with bus.v1() as member:
        await join(member, **start)
        await publish(bus, 1)
        (event,) = await member.events(1)
    assert event["seq"] == expected


async def test_an_event_says_its_subscription_and_attempt(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await join(member, sub="a")
        await publish(bus, 1)
        event = await member.next_of("event")
    assert (event["sub"], event["attempt"], event["payload"], event["topic"]) == ("a", 1, 0, "user.created")


async def test_what_is_ready_together_comes_in_one_frame(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await publish(bus, 60)
        await join(member, **{"from": "earliest"})
        assert [event["payload"] for event in await member.events(60)] == list(range(60))
        assert max(member.sizes) > 10


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"group": ""}, "group.invalid"),
        ({"group": "a\nb"}, "group.invalid"),
        ({"group": "x\u0000"}, "group.invalid"),
        ({"group": "x" * 256}, "group.invalid"),
        ({"group": 7}, "frame.bad"),
        ({"credit": 0}, "frame.bad"),
        ({"credit": 10_001}, "frame.bad"),
        ({"ack_wait": 0}, "frame.bad"),
        ({"ack_wait": 1e9}, "frame.bad"),
        ({"max_attempts": 101}, "frame.bad"),
        ({"max_attempts": 0}, "frame.bad"),
        ({"overflow": "catch_up"}, "frame.bad"),
        ({"pattern": "a..b"}, "pattern.invalid"),
    ],
)
async def test_a_subscription_that_no_group_can_have_is_refused(
    bus: ServedBus, fields: dict[str, Any], code: str
) -> None:
    async with bus.v1() as member:
        await member.next_of("welcome")
        subscribe = {"id": 1, "pattern": "user.*", "group": "sync", **fields}
        assert (await member.ask("subscribe", **subscribe))["error"]["code"] == code
        assert (await member.ask("ping"))["type"] == "pong"


async def test_groups_need_the_subprotocol(bus: ServedBus) -> None:
    async with bus.plain() as peer:
        answer = await peer.ask("subscribe", id=1, pattern="user.*", group="sync")
        assert answer["error"]["code"] == "feature.unsupported"


# --- competing -----------------------------------------------------------------------------------


@pytest.mark.databases("sqlite", "postgresql")
async def test_members_on_two_nodes_share_the_events_and_each_goes_to_one_of_them(open_node: NodeFactory) -> None:
    first, second = await open_node(), await open_node()
    async with first.v1() as one, second.v1() as other:
        await join(one, credit=5)
        await join(other, credit=5)
        seqs = await publish(first, 10)
        held = await one.events(5), await other.events(5)
        assert sorted(event["seq"] for events in held for event in events) == seqs
        assert all(event["attempt"] == 1 for events in held for event in events)
        for peer, events in zip((one, other), held, strict=True):
            answer = await peer.ask("ack", id=2, sub=1, seqs=[event["seq"] for event in events])
            assert answer == {"type": "ok", "id": 2, "acked": 5}
        assert await in_flight(first) == (0, 0)


@pytest.mark.databases("sqlite", "postgresql")
async def test_what_a_lost_member_held_is_with_a_member_on_another_node_at_once(open_node: NodeFactory) -> None:
    first, second = await open_node(), await open_node()
    async with first.v1() as one:
        await join(one)
        seqs = await publish(first, 3)
        assert [event["seq"] for event in await one.events(3)] == seqs
        async with second.v1() as other:
            await join(other)
            one.socket.transport.abort()
            again = await other.events(3)
            assert [(event["seq"], event["attempt"]) for event in again] == [(seq, 2) for seq in seqs]
            assert (await other.ask("ack", id=2, sub=1, up_to=seqs[-1]))["acked"] == 3
    assert await in_flight(second) == (0, 0)


@pytest.mark.databases("sqlite", "postgresql")
async def test_what_a_silent_member_held_is_with_a_member_on_another_node_within_the_ack_wait(
    open_node: NodeFactory,
) -> None:
    first, second = await open_node(), await open_node()
    async with first.v1() as unplugged, second.v1() as other:
        await join(unplugged, ack_wait=0.5, credit=20)
        seqs = await publish(first, 3)
        await unplugged.events(3)
        await join(other)
        again = await other.events(3)
        assert [(event["seq"], event["attempt"]) for event in again] == [(seq, 2) for seq in seqs]
        assert (await unplugged.next())["seqs"] == seqs
        refused = await unplugged.ask("ack", id=2, sub=1, seqs=seqs)
        assert (refused["error"]["code"], refused["error"]["seqs"]) == ("lease.lost", seqs)
        assert (await other.ask("ack", id=2, sub=1, seqs=seqs))["acked"] == 3
    assert await in_flight(first) == (0, 0)


async def test_members_on_one_node_share_the_events(bus: ServedBus) -> None:
    async with bus.v1() as one, bus.v1() as other:
        await join(one, credit=2)
        await join(other, credit=2)
        seqs = await publish(bus, 4)
        held = [*await one.events(2), *await other.events(2)]
    assert sorted(event["seq"] for event in held) == seqs


async def test_credit_bounds_what_a_member_holds(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await join(member, credit=2)
        await publish(bus, 5)
        await member.events(2)
        await eventually(lambda: _buffered(bus, 3))
        assert await in_flight(bus) == (2, 0)
        assert (await member.ask("ack", id=2, sub=1, seq=1))["type"] == "ok"
        assert [event["seq"] for event in await member.events(1)] == [3]
        await member.send("credit", sub=1, credit=1)
        assert [event["seq"] for event in await member.events(1)] == [4]
        assert (await member.ask("ping"))["type"] == "pong"


def _buffered(bus: ServedBus, count: int) -> bool:
    (consumer,) = bus.bus.node.consumers._consumers.values()
    return len(consumer._buffer) == count


# --- settling ------------------------------------------------------------------------------------


async def test_an_ack_with_an_id_is_answered_after_its_commit(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await join(member)
        await publish(bus, 3)
        await member.events(3)
        assert await member.ask("ack", id=2, sub=1, seqs=[1, 3]) == {"type": "ok", "id": 2, "acked": 2}
        assert await in_flight(bus) == (1, 0)
        assert await member.ask("ack", id=3, sub=1, up_to=99) == {"type": "ok", "id": 3, "acked": 1}
        assert await in_flight(bus) == (0, 0)


async def test_an_ack_without_an_id_is_written_soon_and_not_answered(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await join(member)
        await publish(bus, 2)
        await member.events(2)
        await member.send("ack", sub=1, up_to=2)
        assert (await member.ask("ping"))["type"] == "pong"

        async def is_done() -> bool:
            return await in_flight(bus) == (0, 0)

        await eventually(is_done)


async def test_an_ack_needs_no_sub_where_the_group_is_all_that_the_connection_reads(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await join(member)
        await publish(bus, 1)
        await member.events(1)
        assert (await member.ask("ack", id=2, seq=1))["acked"] == 1
        assert await in_flight(bus) == (0, 0)
        assert (await bus.bus.node.get(1)).status == "pending"


@pytest.mark.parametrize("kind", ["ack", "nack", "reject", "extend"])
async def test_what_a_member_does_not_hold_it_cannot_settle(bus: ServedBus, kind: str) -> None:
    async with bus.v1() as member:
        await join(member)
        await publish(bus, 1)
        await member.events(1)
        refused = await member.ask(kind, id=2, sub=1, seqs=[1, 7])
        assert (refused["error"]["code"], refused["error"]["seqs"]) == ("lease.lost", [7])
        wrong_attempt = await member.ask(kind, id=3, sub=1, seq=1, attempt=9)
        assert wrong_attempt["error"]["code"] == "lease.lost"


async def test_an_event_is_settled_once(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await join(member)
        await publish(bus, 1)
        await member.events(1)
        assert (await member.ask("ack", id=2, sub=1, seq=1))["type"] == "ok"
        assert (await member.ask("nack", id=3, sub=1, seq=1))["error"]["code"] == "lease.lost"


async def test_an_ack_with_another_event_s_message_id_changes_nothing(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await join(member)
        await publish(bus, 2)
        first, second = await member.events(2)
        mixed = await member.ask("ack", id=2, sub=1, seq=first["seq"], message_id=second["message_id"])
        assert mixed["error"]["code"] == "ack.mismatch"
        assert (await member.ask("ack", id=3, sub=1, up_to=2))["acked"] == 2


async def test_a_nack_with_a_delay_brings_the_event_again_after_it_with_the_next_attempt(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await join(member)
        await publish(bus, 1)
        await member.events(1)
        assert await member.ask("nack", id=2, sub=1, seq=1, delay=0.2, reason="busy") == {
            "type": "ok",
            "id": 2,
            "nacked": 1,
        }
        assert await in_flight(bus) == (0, 1)
        (again,) = await member.events(1)
        assert again["attempt"] == 2


async def test_a_nack_without_a_delay_waits_for_the_backoff(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await join(member)
        await publish(bus, 1)
        await member.events(1)
        await member.ask("nack", id=2, sub=1, seq=1)
        groups = bus.bus.node.store.groups
        (look,) = await groups.look([(await groups.get("sync")).id])
    assert look.retry_due is not None
    assert look.retry_due - look.now > 3_000_000


async def test_an_event_that_was_nacked_at_its_last_attempt_is_a_dead_letter_with_its_reasons(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await join(member, max_attempts=2)
        await publish(bus, 1)
        for attempt in (1, 2):
            (event,) = await member.events(1)
            assert event["attempt"] == attempt
            await member.ask("nack", id=attempt, sub=1, seq=1, delay=0, reason=f"reason {attempt}")
        (letter,) = await dead_letters(bus)
    assert (letter.message.seq, letter.attempt) == (1, 2)
    assert [error["message"] for error in letter.errors] == ["reason 1", "reason 2"]


async def test_a_rejected_event_is_a_dead_letter_at_once(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await join(member)
        await publish(bus, 2)
        await member.events(2)
        assert await member.ask("reject", id=2, sub=1, seq=2, reason="no user\u0000") == {
            "type": "ok",
            "id": 2,
            "rejected": 1,
        }
        (letter,) = await dead_letters(bus)
        assert (letter.message.seq, letter.errors[0]["message"]) == (2, "no user\\x00")
        assert await in_flight(bus) == (1, 0)


@pytest.mark.parametrize("kind", ["nack", "reject", "extend"])
async def test_only_a_member_of_a_group_can_give_back(bus: ServedBus, kind: str) -> None:
    async with bus.v1() as peer:
        await peer.next_of("welcome")
        await peer.ask("subscribe", id=1, sub=1, pattern="#")
        await peer.next_of("caught_up")
        assert (await peer.ask(kind, id=2, sub=1, seq=1))["error"]["code"] == "feature.unsupported"
        assert (await peer.ask(kind, id=3, sub=2, seq=1))["error"]["code"] == "subscription.unknown"
        assert (await peer.ask(kind, id=4, sub=1))["error"]["code"] == "frame.bad"
        assert (await peer.ask("nack", id=5, sub=1, seq=1, delay=1e15))["error"]["code"] == "frame.bad"


async def test_what_members_settle_goes_to_the_archive_with_how_long_they_had_it(
    bus: ServedBus,
) -> None:
    await bus.bus.groups.declare("sync", ["user.*"], archive="all")
    async with bus.v1() as member:
        await join(member)
        await publish(bus, 2)
        await member.events(2)
        await member.ask("ack", id=2, sub=1, seq=1)
        await member.ask("reject", id=3, sub=1, seq=2)
    entries = [entry for _, entry in (await bus.bus.groups.archive("sync")).entries]
    assert [(entry.seq, entry.outcome) for entry in entries] == [(1, "acked"), (2, "dead")]
    assert all(entry.duration is not None and entry.duration > 0 for entry in entries)


# --- the ack wait --------------------------------------------------------------------------------


async def test_a_member_that_stalls_loses_its_events_and_its_late_ack_is_refused(bus: ServedBus) -> None:
    async with bus.v1() as stalled, bus.v1() as other:
        await join(stalled, credit=1, ack_wait=0.3)
        await publish(bus, 1)
        await stalled.events(1)
        await join(other)
        (again,) = await other.events(1)
        assert (again["seq"], again["attempt"]) == (1, 2)
        assert await stalled.next() == {"type": "lost", "sub": 1, "seqs": [1]}
        late = await stalled.ask("ack", id=2, sub=1, seq=1)
        assert late["error"]["code"] == "lease.lost"
        assert (await other.ask("ack", id=2, sub=1, seq=1, attempt=2))["acked"] == 1
    assert await in_flight(bus) == (0, 0)


async def test_a_member_that_is_silent_is_sent_nothing_until_it_is_heard_of(bus: ServedBus) -> None:
    async with bus.v1() as silent:
        await join(silent, ack_wait=0.2)
        await publish(bus, 1)
        await silent.events(1)
        assert (await silent.next())["type"] == "lost"
        await publish(bus, 1)

        async def both_wait() -> bool:
            return sum(await in_flight(bus)) >= 1 and not bus.bus.node.consumers.settler.held

        await eventually(both_wait)
        await silent.send("ping")
        assert (await silent.next())["type"] == "pong"
        assert sorted(event["seq"] for event in await silent.events(2)) == [1, 2]


async def test_what_was_taken_back_counts_against_the_credit_until_the_member_speaks_of_it(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await join(member, credit=1, ack_wait=0.2)
        await publish(bus, 1)
        await member.events(1)
        assert (await member.next())["type"] == "lost"
        assert (await member.ask("ping"))["type"] == "pong"
        assert (await member.ask("ack", id=2, sub=1, seq=1))["error"]["code"] == "lease.lost"
        (again,) = await member.events(1)
        assert again["attempt"] == 2
        assert (await member.ask("ack", id=3, sub=1, seq=1))["acked"] == 1


async def test_a_late_ack_of_an_attempt_does_not_settle_the_next_one_of_the_same_member(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await join(member, credit=2, ack_wait=1)
        await publish(bus, 1)
        await member.events(1)
        assert (await member.next())["type"] == "lost"
        await member.send("ping")
        assert [event["attempt"] for event in await member.events(1)] == [2]
        assert (await member.ask("ack", id=2, sub=1, seq=1))["error"]["code"] == "lease.lost"
        assert (await member.ask("ack", id=3, sub=1, seq=1))["acked"] == 1


async def test_extending_keeps_an_event_beyond_the_ack_wait(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await join(member, ack_wait=0.6)
        await publish(bus, 2)
        await member.events(2)
        lost = None
        for number in range(10, 40):
            answer = await member.ask("extend", id=number, sub=1, seq=1)
            if answer["type"] == "lost":
                lost = answer
                assert (await member.next())["extended"] == 1
                break
            assert answer == {"type": "ok", "id": number, "extended": 1}
            await _let_time_pass()
        assert lost == {"type": "lost", "sub": 1, "seqs": [2]}
        await member.send("ack", id=50, sub=1, seq=1)
        assert (await member.next_of("ok"))["acked"] == 1


async def _let_time_pass() -> None:
    """The ack wait is time that passes: there is nothing else to wait for."""
    await asyncio.sleep(0.1)


async def test_an_event_whose_members_all_stall_ends_as_a_dead_letter(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await join(member, ack_wait=0.1, max_attempts=2)
        await publish(bus, 1)
        for attempt in (1, 2):
            (event,) = await member.events(1)
            assert event["attempt"] == attempt
            assert (await member.next())["type"] == "lost"
            await member.ask("ping")
        (letter,) = await eventually(lambda: dead_letters(bus))
    assert [error["type"] for error in letter.errors] == ["AckWaitEnded", "AckWaitEnded"]


# --- leaving -------------------------------------------------------------------------------------


async def test_a_member_that_disconnects_gives_its_events_back_at_once(bus: ServedBus) -> None:
    async with bus.v1() as stays:
        async with bus.v1() as leaves:
            await join(leaves)
            await publish(bus, 2)
            await leaves.events(2)
            await join(stays)
        again = await stays.events(2)
    assert [(event["seq"], event["attempt"]) for event in again] == [(1, 2), (2, 2)]


async def test_a_member_that_unsubscribes_gives_its_events_back_and_may_join_again(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await join(member)
        await publish(bus, 1)
        await member.events(1)
        assert (await member.ask("unsubscribe", id=2, sub=1)) == {"type": "ok", "id": 2}
        assert (await member.ask("ack", id=3, sub=1, seq=1))["error"]["code"] == "subscription.unknown"
        await join(member)
        (again,) = await member.events(1)
        assert again["attempt"] == 2


@contextlib.asynccontextmanager
async def stalled_member(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[ServedBus, Peer]]:
    """Yield a member, sub 1, that does not read what it is sent. It is gone when the block ends, and then nobody is
    left who takes from the group.
    """
    async with serving_bus(tmp_path, **settings) as bus:
        async with bus.v1(ping_interval=None) as stalled:
            await stalled.send("subscribe", id=1, sub=1, pattern="bulk", group="sync", credit=1_000)
            await stalled.next_of("ok")
            stalled.socket.transport.pause_reading()
            await publish_until(bus, lambda: has_unread(bus))
            await publish_until(bus, lambda: has_unread(bus))  # what the system had room for is full
            yield bus, stalled
            stalled.socket.transport.abort()
        await eventually(lambda: is_left_alone(bus) and not bus.bus.node.consumers._consumers)


async def test_a_member_that_is_gone_while_it_unsubscribes_gives_its_events_back(tmp_path: Path) -> None:
    """Given a send that stalls, for which the end of the subscription waits."""
    async with stalled_member(tmp_path) as (bus, member):
        head = (await bus.bus.head()).last_seq
        publishing = {"type": "publish", "data": {"topic": "read", "payload": 1}}
        await member.socket.send(json.dumps([publishing, {"type": "unsubscribe", "sub": 1, "id": 2}]))

        async def is_read() -> bool:
            return (await bus.bus.head()).last_seq > head

        await eventually(is_read)


async def test_a_member_that_is_gone_while_its_grant_ends_gives_its_events_back(tmp_path: Path) -> None:
    grants, asked = ["bulk"], asyncio.Event()

    async def authenticate(_: HTTPConnection) -> Principal:
        asked.set()
        return Principal("reader", subscribe=tuple(grants), groups=("sync",))

    async with stalled_member(tmp_path, authenticate=authenticate, recheck_interval=0.1):
        grants.clear()
        asked.clear()
        await asked.wait()


async def test_acks_that_were_sent_before_the_end_of_the_connection_count(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await join(member)
        await publish(bus, 100)
        await member.events(100)
        for seq in range(1, 101):
            await member.send("ack", sub=1, seq=seq)

    async def is_done() -> bool:
        return await in_flight(bus) == (0, 0) and not bus.bus.node.consumers._consumers

    await eventually(is_done)
    assert await dead_letters(bus) == []


async def test_a_group_that_is_deleted_closes_the_subscriptions_of_its_members(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await join(member)
        await bus.bus.node.store.groups.delete("sync")
        closed = await member.next_of("closed")
        assert (closed["sub"], closed["error"]["code"]) == (1, "group.not_found")


async def test_a_stopping_bus_closes_the_subscriptions_of_members_for_now(bus: ServedBus) -> None:
    async with bus.v1() as member:
        await join(member)
        await publish(bus, 1)
        await member.events(1)
        await bus.bus.stop()
        closed = await member.next_of("closed")
        assert (closed["error"]["code"], closed["error"]["retry"]) == ("server.not_running", True)
