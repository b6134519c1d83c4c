"""Figures over time: samples, rates and plots, and the stream that tells of them."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from eventbus_fastapi import EventBus
from eventbus_fastapi.dashboard import live, sampler
from eventbus_fastapi.dashboard.figures import figures_of
from eventbus_fastapi.dashboard.plots import HEIGHT, WIDTH, plot_of
from eventbus_fastapi.dashboard.sampler import KEPT, Sampler, rates
from eventbus_fastapi.errors import NotRunning
from tests.browser.seeded import add_group, fill_log
from tests.server.asking import app_of, bus_on
from tests.serving import serving
from tests.waiting import eventually


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


async def test_a_sample_says_how_the_bus_is(eventbus: EventBus) -> None:
    await fill_log(eventbus, 50)
    await add_group(eventbus, "a", ["#"], after=0, dead=1, again=2, held=3)
    await add_group(eventbus, "b", ["#"], after=45)

    sample = await Sampler(eventbus.node).sample()

    assert (sample.last_seq, sample.groups, sample.lag) == (50, 2, 39)
    assert (sample.in_flight, sample.retries, sample.dead) == (3, 2, 1)


async def test_rates_are_what_came_between_two_samples(eventbus: EventBus) -> None:
    clock = Clock()
    taken = Sampler(eventbus.node, clock)
    for events in (0, 6, 0):
        await fill_log(eventbus, events)
        await taken.sample()
        clock.now += 3

    assert [rate for _, rate in rates(taken.samples, lambda each: each.last_seq)] == [2.0, 0.0]
    assert figures_of(taken.samples)["published"] == "1"


async def test_samples_are_kept_for_some_minutes(eventbus: EventBus) -> None:
    clock = Clock()
    taken = Sampler(eventbus.node, clock)
    for _ in range(5):
        await taken.sample()
        clock.now += KEPT / 2

    assert [each.time - 1_000 for each in taken.samples] == [KEPT, 1.5 * KEPT, 2 * KEPT]


async def test_it_takes_samples_while_the_bus_runs(eventbus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "INTERVAL", 0.01)
    monkeypatch.setattr(sampler, "SHARE", 0.0)
    taken = Sampler(eventbus.node)

    taken.ensure()
    await eventually(lambda: len(taken.samples) > 2)
    await eventbus.stop()
    assert taken.has_ended
    await eventbus.start()
    before = len(taken.samples)
    taken.ensure()
    await eventually(lambda: len(taken.samples) > before)


async def test_it_takes_none_of_a_bus_that_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(NotRunning):
        await Sampler(bus_on(tmp_path).node).sample()


def test_a_plot_goes_from_left_to_right_and_its_bottom_is_zero() -> None:
    plot = plot_of([(0, 0), (5, 10), (10, 5)], start=0, end=10)

    assert plot.most == 10
    assert plot.line == f"M0.0,{HEIGHT - 3}.0L150.0,3.0L{WIDTH}.0,32.0"
    assert plot.area.endswith(f"L{WIDTH}.0,{HEIGHT}L0.0,{HEIGHT}Z")


@pytest.mark.parametrize("values", [[], [(1.0, 5.0)], [(-5.0, 1.0), (-4.0, 2.0)]])
def test_a_plot_of_nothing_is_empty(values: list[tuple[float, float]]) -> None:
    assert plot_of(values, start=0, end=10).line == ""


# --- the stream ---


async def test_the_stream_tells_of_each_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "INTERVAL", 0.05)
    bus = bus_on(tmp_path)
    async with (
        serving(app_of(bus)) as served,
        httpx.AsyncClient(base_url=served.http, timeout=20) as http,
        http.stream("GET", "/dashboard/live") as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "no-store" in answer.headers["cache-control"]
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        lines = answer.aiter_lines()
        assert await anext(lines) == "retry: 2000"
        await bus.publish_many([("a", 1)] * 5)
        async for line in lines:
            if line.startswith("data: ") and json.loads(line[6:])["figures"]["head"] == "5":
                break


async def test_the_stream_ends_when_the_server_stops(tmp_path: Path) -> None:
    """Given an open stream, when the server stops, then it does not wait for it."""
    bus = bus_on(tmp_path)
    async with httpx.AsyncClient(timeout=20) as http:
        async with serving(app_of(bus), timeout_graceful_shutdown=50) as served:
            stream = http.stream("GET", f"{served.http}/dashboard/live")
            answer = await stream.__aenter__()
            assert answer.status_code == 200
        await stream.__aexit__(None, None, None)


async def test_there_are_only_so_many_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_STREAMS", 1)
    async with serving(app_of(bus_on(tmp_path))) as served, httpx.AsyncClient(base_url=served.http) as http:
        async with http.stream("GET", "/dashboard/live") as first:
            assert first.status_code == 200
            await anext(first.aiter_lines())
            second = await http.get("/dashboard/live")
            assert (second.status_code, second.headers["retry-after"]) == (503, "30")

        async def is_free() -> bool:
            async with http.stream("GET", "/dashboard/live") as third:
                return third.status_code == 200

        await eventually(is_free)
