"""The overview: how the bus is now, and how it was in the last minutes."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Response

from eventbus_fastapi.dashboard.figures import figures_of
from eventbus_fastapi.dashboard.plots import Plot, plot_of
from eventbus_fastapi.dashboard.sampler import KEPT, Sample, Sampler, rates
from eventbus_fastapi.dashboard.visit import Visit

SHOWN = 6
"""Groups that are listed: those that are furthest behind, and those with the most dead letters."""


async def show(visit: Visit) -> Response:
    sampler, node = visit.sampler, visit.node
    if not sampler.samples or sampler.now - sampler.samples[-1].time > 1:
        await sampler.sample()
    groups = await node.steward.groups()
    return visit.show(
        "overview.html",
        figures=figures_of(sampler.samples),
        plots=plots_of(sampler),
        minutes=KEPT / 60,
        problems=await node.problems(),
        behind=sorted((each for each in groups if each.figures.lag), key=lambda each: -each.figures.lag)[:SHOWN],
        with_dead=sorted((each for each in groups if each.figures.dead), key=lambda each: -each.figures.dead)[:SHOWN],
        paused=[each.group.name for each in groups if each.group.is_paused],
        paused_queues=[each.name for each in await node.queues.queues() if each.is_paused],
    )


def plots_of(sampler: Sampler) -> dict[str, Plot]:
    """Return the plots, by the name of what they show."""
    samples, now = sampler.samples, sampler.now

    def level(of: Callable[[Sample], float]) -> Plot:
        return plot_of([(each.time, of(each)) for each in samples], start=now - KEPT, end=now)

    def rate(of: Callable[[Sample], int]) -> Plot:
        return plot_of(rates(samples, of), start=now - KEPT, end=now)

    return {
        "published": rate(lambda each: each.last_seq),
        "delivered": rate(lambda each: each.delivered),
        "lag": level(lambda each: each.lag),
        "in_flight": level(lambda each: each.in_flight),
        "retries": level(lambda each: each.retries),
        "dead": level(lambda each: each.dead),
    }
