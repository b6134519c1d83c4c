"""Metrics as a scrape gets them, for tests."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from eventbus_fastapi import EventBus

Labels = frozenset[tuple[str, str]]


@dataclass
class Scrape:
    """What one scrape got."""

    samples: dict[str, dict[Labels, float]]
    """By name as it is scraped, and by labels."""

    def __getitem__(self, name: str) -> float:
        """The value of a metric that has no labels."""
        return self.samples[name][frozenset()]

    def of(self, name: str, **labels: str) -> float:
        return self.samples[name][frozenset(labels.items())]

    def labels(self, name: str) -> set[Labels]:
        return set(self.samples.get(name, {}))


def parse(text: str) -> Scrape:
    samples: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return Scrape(samples)


async def scrape(bus: EventBus) -> Scrape:
    body, _ = await bus.metrics.text()
    return parse(body.decode())
