"""How a figure is taken: limit and bus by turns, the median of their ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import make_url

from eventbus_fastapi import EventBus
from eventbus_fastapi.store import migrations
from tests.databases import open_factory

Rate = Callable[[], Awaitable[float]]
"""Does some work and returns events per second."""

PAYLOAD = {"id": 1_234_567, "username": "someone", "email": "someone@example.org", "note": "y" * 122}
"""200 bytes of JSON."""


@dataclass(frozen=True)
class Figure:
    """One line of the report."""

    name: str
    limit: float
    bus: float
    ratio: float
    target: float
    unit: str = "/s"
    is_lower_better: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the ratio is what was asked, or better."""
        return self.ratio <= self.target if self.is_lower_better else self.ratio >= self.target

    def __str__(self) -> str:
        relation = "≤" if self.is_lower_better else "≥"
        return (
            f"{self.name:<58} limit {self.limit:>11,.1f}{self.unit:<3} bus {self.bus:>11,.1f}{self.unit:<3} "
            f"ratio {self.ratio:5.2f}  (asked {relation} {self.target}) {'ok' if self.is_met else 'MISSED'}"
        )


async def compare(name: str, limit: Rate, bus: Rate, *, target: float, repeat: int) -> Figure:
    """Measure limit and bus by turns; one unmeasured turn first."""
    await limit()
    await bus()
    pairs = [(await limit(), await bus()) for _ in range(repeat)]
    return Figure(
        name,
        statistics.median(pair[0] for pair in pairs),
        statistics.median(pair[1] for pair in pairs),
        statistics.median(pair[1] / pair[0] for pair in pairs),
        target,
    )


async def rate(count: int, work: Awaitable[Any]) -> float:
    """Return how many a second `work` did, of `count`."""
    start = time.perf_counter()
    await work
    return count / (time.perf_counter() - start)


def quantile(values: list[float], place: float) -> float:
    """Return the value that this share of all do not exceed."""
    return sorted(values)[int(len(values) * place)]


@contextmanager
def database(kind: str) -> Iterator[str]:
    """An empty database, dropped afterwards."""
    with TemporaryDirectory() as directory, open_factory(kind, Path(directory)) as factory:
        url = factory.create()
        try:
            yield url
        finally:
            factory.drop(url)


async def migrate(eventbus: EventBus) -> None:
    """Create the tables on a server database."""
    async with eventbus.engine.begin() as connection:
        await connection.run_sync(migrations.upgrade, eventbus.node.store.tables)


def dsn(url: str) -> str:
    """The URL as asyncpg wants it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
