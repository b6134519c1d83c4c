"""Addresses that keep the loop busy share one place in it, behind those that do not."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Callable

import pytest

from eventbus_fastapi.server import turns
from eventbus_fastapi.server.turns import BURST, LARGE, MOST_OWED, PATIENCE, QUANTUM, Share, turns_of
from tests.waiting import eventually

CROWD = "127.0.0.2"
OTHER = "127.0.0.3"
LIGHT = "127.0.0.1"


def share_of(address: str) -> Share:
    return Share(asyncio.get_running_loop(), address)


def heavy_share(address: str) -> Share:
    """Return one whose address is in debt."""
    share = share_of(address)
    share.spend(MOST_OWED)
    return share


def work(address: str) -> None:
    """Have a light address do a little, as it does now and then."""
    share_of(address).spend(1e-9)


def put(into: list[str], name: str) -> Callable[[], None]:
    return lambda: into.append(name)


async def go_on_and_on(share: Share, name: str, done: list[str], seconds: float = QUANTUM) -> None:
    while True:
        share.spend(seconds)
        await share.free()
        done.append(name)


async def test_one_of_the_line_is_served_in_each_turn_of_the_loop() -> None:
    share = heavy_share(CROWD)
    served: list[str] = []
    for name in "abc":
        turns_of(asyncio.get_running_loop()).wait(share, put(served, name))
    assert served == []

    seen = []
    for _ in range(3):
        await asyncio.sleep(0)
        seen.append("".join(served))

    assert seen == ["a", "ab", "abc"]


async def test_who_leaves_the_line_holds_nobody_up() -> None:
    share = heavy_share(CROWD)
    gone = asyncio.create_task(share.turn())
    waiting = asyncio.create_task(heavy_share(OTHER).turn())
    await asyncio.sleep(0)
    gone.cancel()

    await asyncio.wait_for(waiting, 5)


async def test_a_fault_in_one_turn_does_not_end_the_line(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: None)
    share = heavy_share(CROWD)

    def fail() -> None:
        raise ZeroDivisionError

    turns_of(loop).wait(share, fail)

    await asyncio.wait_for(share.turn(), 5)


async def test_a_light_address_never_waits() -> None:
    share = share_of(LIGHT)
    share.spend(BURST / 2)
    done: list[str] = []

    share.when_free(put(done, "at once"))

    assert done == ["at once"]


async def test_a_heavy_one_goes_on_in_its_turn() -> None:
    share = share_of(CROWD)
    share.spend(BURST + QUANTUM / 2)
    done: list[str] = []

    share.when_free(put(done, "in its turn"))

    assert done == []
    await eventually(lambda: done == ["in its turn"])


async def test_a_turn_is_good_for_a_little_work() -> None:
    share = heavy_share(CROWD)
    await share.turn()

    share.spend(QUANTUM / 2)
    is_used_up_after_half = share.is_used_up
    share.spend(QUANTUM / 2)

    assert not is_used_up_after_half
    assert share.is_used_up


async def test_a_share_fills_again() -> None:
    share = share_of(CROWD)
    share.spend(BURST + 0.001)
    assert share.is_used_up

    await eventually(lambda: not share.is_used_up)


async def test_all_connections_of_an_address_have_one_share() -> None:
    share_of(CROWD).spend(BURST + QUANTUM)

    assert share_of(CROWD).is_used_up
    assert not share_of(LIGHT).is_used_up


async def test_who_comes_back_keeps_the_debt() -> None:
    """Given an address in debt, when its last connection is gone, then a new one stands in line at once."""
    share = heavy_share(CROWD)
    del share

    assert share_of(CROWD).is_used_up


async def test_who_comes_back_finds_what_was_left() -> None:
    """Given others that are there, when an address connects anew for each little that it does, then it is taken from
    one share all the same.
    """
    for _ in range(10):
        share_of(CROWD).spend(0.9 * BURST)
        work(LIGHT)

    assert share_of(CROWD).is_used_up


def test_loops_that_have_ended_are_forgotten() -> None:
    ended: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def flood() -> None:
        heavy_share(CROWD)
        ended.append(weakref.ref(asyncio.get_running_loop()))

    for _ in range(3):
        asyncio.run(flood())
    gc.collect()

    assert [loop() for loop in ended[:-1]] == [None, None]


async def test_addresses_without_debt_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SWEEP_AT", 10)
    line = turns.Turns(asyncio.get_running_loop())
    for number in range(100):
        account = line.account(f"10.0.0.{number}")
        line.remember(account)
        del account

    assert len(line._accounts) <= 11


async def test_who_has_done_much_at_once_is_passed_over_in_turn() -> None:
    """Given two addresses in line, of which one has used a hundred times as much, then the other goes on meanwhile."""
    greedy, done = heavy_share(CROWD), list[str]()
    going_on = asyncio.create_task(go_on_and_on(heavy_share(OTHER), "modest", done))
    await greedy.turn()
    greedy.spend(100 * QUANTUM)
    done.clear()
    await greedy.free()
    going_on.cancel()

    assert len(done) >= 50


async def test_one_that_asks_for_little_waits_for_one_piece_of_each_neighbour() -> None:
    """Given an address with many that flood, then one behind it that has asked for nothing yet is served next."""
    done: list[str] = []
    flooding = [asyncio.create_task(go_on_and_on(heavy_share(CROWD), "flood", done)) for _ in range(20)]
    await eventually(lambda: len(done) > 200)
    modest = share_of(CROWD)
    done.clear()
    await modest.free()
    for task in flooding:
        task.cancel()

    assert len(done) <= 25


async def test_two_connections_of_an_address_get_the_same_whatever_their_pieces() -> None:
    done: list[str] = []
    tasks = [
        asyncio.create_task(go_on_and_on(heavy_share(CROWD), "large", done, 10 * QUANTUM)),
        asyncio.create_task(go_on_and_on(heavy_share(CROWD), "small", done)),
    ]
    await eventually(lambda: len(done) > 500)
    for task in tasks:
        task.cancel()

    assert 8 <= done.count("small") / done.count("large") <= 12


async def test_no_address_waits_for_how_many_connections_another_has() -> None:
    done: list[str] = []
    tasks = [asyncio.create_task(go_on_and_on(heavy_share(CROWD), "crowd", done)) for _ in range(20)]
    tasks.append(asyncio.create_task(go_on_and_on(heavy_share(OTHER), "other", done)))
    await eventually(lambda: len(done) > 500)
    for task in tasks:
        task.cancel()

    assert done.count("other") > 200


# --- beside others -------------------------------------------------------------------------------


async def turns_taken(seconds: float, *, beside: Callable[[], None]) -> int:
    """Return how many turns a flood has in some time in which `beside` is called in each turn of the loop."""
    done: list[str] = []
    task = asyncio.create_task(go_on_and_on(heavy_share(CROWD), "flood", done))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        beside()
        await asyncio.sleep(0)
    task.cancel()
    return len(done)


async def test_who_floods_alone_waits_for_nobody() -> None:
    assert await turns_taken(0.2, beside=lambda: None) > 2 * 0.2 / PATIENCE


async def test_the_line_is_held_up_while_others_work_but_not_for_long() -> None:
    taken = await turns_taken(0.2, beside=lambda: work(LIGHT))

    assert 5 <= taken <= 0.2 / PATIENCE + 1


async def test_the_line_waits_for_what_one_of_it_has_begun() -> None:
    first, second = heavy_share(CROWD), heavy_share(CROWD)
    await first.turn()
    work(LIGHT)
    began = time.monotonic()
    first.begin()
    await second.turn()
    waited = time.monotonic() - began
    first.end()

    assert waited >= PATIENCE / 2


async def test_what_is_done_holds_nobody_up() -> None:
    share = heavy_share(CROWD)
    share.begin()
    share.end()

    assert turns_of(asyncio.get_running_loop()).working is None


# --- large texts ---------------------------------------------------------------------------------


async def test_a_small_text_is_parsed_at_once_whatever_its_address_has_sent() -> None:
    share = heavy_share(CROWD)
    work(LIGHT)

    reading = share.read(LARGE, lambda: "parsed")

    with pytest.raises(StopIteration, match="parsed"):
        reading.send(None)


async def test_a_large_text_is_parsed_when_the_last_long_one_is_paid_for() -> None:
    """Given a text that took 20 ms, then the next waits 20 ms * 20 ms / LONG while others are there."""
    share = share_of(CROWD)
    share.spend(0.02)
    began = time.monotonic()

    reading = asyncio.create_task(share.read(LARGE + 1, lambda: "parsed"))
    while not reading.done():
        work(LIGHT)
        await asyncio.sleep(0.001)

    assert reading.result() == "parsed"
    assert time.monotonic() - began >= 0.7


async def test_a_large_text_is_parsed_at_once_where_nobody_else_is_there() -> None:
    share = share_of(CROWD)
    share.spend(1)

    assert await asyncio.wait_for(share.read(LARGE + 1, lambda: "parsed"), 5) == "parsed"


async def test_what_parsing_takes_is_taken_from_the_share() -> None:
    share = share_of(CROWD)

    await share.read(10, lambda: sum(range(1_000_000)))

    assert share.is_used_up
