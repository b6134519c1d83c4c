"""How fast one principal may publish."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from eventbus_fastapi.client import ClientConfig, EventBusClient
from eventbus_fastapi.errors import PublishTooFast
from eventbus_fastapi.server import publish_rate
from eventbus_fastapi.server.publish_rate import (
    LONGEST_ON_ITS_WAY,
    MAX_IGNORED,
    SHORTEST_WAIT,
    SWEEP_AT,
    Pace,
    PublishRate,
)
from eventbus_fastapi.settings import Settings
from tests.server.sockets import ServedBus, serving_bus


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rate(clock: Clock) -> PublishRate:
    """Ten events a second, three at once."""
    return PublishRate(Settings(publish_rate=10, publish_burst=3), clock)


def refusal(rate: PublishRate | Pace, wave: int | None = None) -> PublishTooFast:
    with pytest.raises(PublishTooFast) as refused:
        rate.take("a", 1) if isinstance(rate, PublishRate) else rate.take("a", 1, wave)
    return refused.value


def test_a_burst_is_taken_and_one_more_is_not(rate: PublishRate) -> None:
    for _ in range(3):
        rate.take("a", 1)

    error = refusal(rate)

    assert error.retry_after == 0.1
    assert str(error) == "more than 10 events a second (EVENTBUS_PUBLISH_RATE); go on in 0.1 seconds"
    rate.take("b", 1)  # another one's bucket


def test_after_the_time_that_was_told_one_is_taken_and_one_more_is_not(rate: PublishRate, clock: Clock) -> None:
    rate.take("a", 3)
    for _ in range(5):
        clock.now += refusal(rate).retry_after or 0
        rate.take("a", 1)


def test_a_batch_beyond_the_burst_is_taken_and_waited_for_afterwards(rate: PublishRate, clock: Clock) -> None:
    rate.take("a", 23)

    assert refusal(rate).retry_after == 2.1
    clock.now += 2.0
    refusal(rate)
    clock.now += 0.1
    rate.take("a", 1)


def test_a_bucket_never_holds_more_than_the_burst(rate: PublishRate, clock: Clock) -> None:
    rate.take("a", 3)
    clock.now += 3_600
    rate.take("a", 3)
    refusal(rate)


def test_buckets_that_are_full_again_are_forgotten(rate: PublishRate, clock: Clock) -> None:
    for number in range(10 * SWEEP_AT):
        clock.now += 0.01
        rate.take(f"198.51.100.{number}", 1)
        assert len(rate._buckets) <= SWEEP_AT + 1


# --- the pace of one WebSocket -------------------------------------------------------------------


@pytest.fixture
def pace(rate: PublishRate, clock: Clock) -> Pace:
    return Pace(rate, clock)


def test_what_was_under_way_is_refused_in_order_and_not_held_against_a_client(pace: Pace, clock: Clock) -> None:
    for _ in range(3 * MAX_IGNORED):
        pace.take("a", 30)
        wait = refusal(pace).retry_after or 0
        for _ in range(1_000):
            clock.now += 0.0001
            refusal(pace)
        clock.now += wait
        assert not pace.is_hopeless


def test_nothing_is_taken_before_the_wait_is_over(pace: Pace, clock: Clock) -> None:
    pace.take("a", 3)
    refusal(pace)
    clock.now += 0.9  # there are events in the bucket, and the client was told one second
    assert refusal(pace).retry_after == 0.1
    clock.now += 0.2
    pace.take("a", 1)


def test_however_long_a_publish_was_on_its_way_it_does_not_overtake_a_refused_one(pace: Pace, clock: Clock) -> None:
    """A client that says the wave is not known by the time: a busy server may read late what came in time."""
    pace.take("a", 3, wave=0)
    refusal(pace, wave=0)
    for _ in range(50):
        clock.now += 1.1
        refusal(pace, wave=0)
        assert (pace.is_hopeless, pace.drag) == (False, 0.0)
    pace.take("a", 1, wave=1)
    pace.take("a", 1, wave=1)
    pace.take("a", 1, wave=0)  # it was refused for something else, and has come again


def test_a_new_wave_before_the_wait_is_over_is_refused_as_a_whole(pace: Pace, clock: Clock) -> None:
    pace.take("a", 3, wave=0)
    refusal(pace, wave=0)
    clock.now += 0.999
    refusal(pace, wave=1)
    clock.now += 0.1
    refusal(pace, wave=1)
    pace.take("a", 1, wave=0)


def test_a_client_that_never_begins_another_wave_is_hopeless_as_well(pace: Pace, clock: Clock) -> None:
    began = clock.now
    while not pace.is_hopeless:
        clock.now += 0.01
        try:
            pace.take("a", 1, wave=0)
        except PublishTooFast:
            continue
    assert clock.now - began < LONGEST_ON_ITS_WAY + 2 * MAX_IGNORED + 1


def test_a_client_that_ignores_waits_in_a_row_is_hopeless(pace: Pace, clock: Clock) -> None:
    seconds = 0.0
    while not pace.is_hopeless:
        clock.now += 0.01
        seconds += 0.01
        try:
            pace.take("a", 1)
        except PublishTooFast:
            continue
    assert seconds < 2 * MAX_IGNORED


# --- over HTTP and WebSocket ---------------------------------------------------------------------

EVENT = {"topic": "a", "payload": 1}


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> AsyncIterator[ServedBus]:
    """Its buckets do not fill while a test runs, however long that takes."""
    monkeypatch.setattr(PublishRate, "_now", lambda _: clock())
    async with serving_bus(tmp_path, publish_rate=5, publish_burst=10) as served:
        yield served


async def test_over_http_the_answer_is_429_with_retry_after(served: ServedBus) -> None:
    async with httpx.AsyncClient(base_url=served.served.http) as http:
        assert (await http.post("/publish", json=[EVENT] * 10)).status_code == 201

        answer = await http.post("/publish", json=EVENT)

        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert (answer.json()["code"], answer.json()["retry"]) == ("publish.too_fast", True)
        assert (await http.get("/events")).status_code == 200  # reading is not publishing
    assert (await served.bus.head()).last_seq == 10


async def test_all_of_an_address_share_a_bucket(served: ServedBus) -> None:
    async with httpx.AsyncClient(base_url=served.served.http) as http, served.v1() as client:
        await http.post("/publish", json=[EVENT] * 10)

        await client.send("publish", id=1, data=EVENT)

        error = await client.next_of("error")
        assert (error["id"], error["error"]["code"], error["error"]["retry"]) == (1, "publish.too_fast", True)
        assert error["error"]["retry_after"] == 1.0


async def test_a_client_that_goes_on_is_closed_with_4429(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, publish_rate=1, publish_burst=1) as served, served.v1() as client:

        async def go_on() -> None:
            while True:
                await client.socket.send(json.dumps({"type": "publish", "data": EVENT}))
                await asyncio.sleep(0.05)

        going = asyncio.create_task(go_on())
        frames, code = await client.rest()
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)

    assert code == 4429
    assert (frames[-1]["type"], frames[-1]["reconnect"]) == ("bye", False)
    assert frames[-1]["error"]["code"] == "publish.too_fast"


@pytest.mark.parametrize("wait", [SHORTEST_WAIT, 0.001])
async def test_our_client_waits_and_publishes_everything_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: float
) -> None:
    """Also where the wait is over before all that was on its way is read: a busy server reads late."""
    monkeypatch.setattr(publish_rate, "SHORTEST_WAIT", wait)
    async with serving_bus(tmp_path, publish_rate=2_000, publish_burst=800) as served:
        async with EventBusClient(ClientConfig(url=served.served.ws, proxy=None)) as client:
            await asyncio.gather(*(client.publish("a", number) for number in range(2_000)))

        page = await served.bus.node.history(["#"], 0, 3_000)
    assert [message.payload for message in page.messages] == list(range(2_000))
