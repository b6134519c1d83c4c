"""Matching one topic against 100,000 patterns: against the 50 µs that it may take."""

from __future__ import annotations

import random
import statistics
import time

from benchmarks.measuring import Figure
from eventbus_fastapi.topics import PatternIndex

PATTERNS = 100_000
TOPICS = 2_000


async def run(repeat: int) -> list[Figure]:
    name = f"match one topic against {PATTERNS:,} patterns"
    return [_measure(name, *_ordinary(), repeat), _measure(f"{name}, hostile", *_hostile(), repeat)]


def _ordinary() -> tuple[list[str], list[str]]:
    chance = random.Random(1)
    words = [f"word{number}" for number in range(300)]

    def segments(wildcards: bool) -> str:
        chosen = [chance.choice(words) for _ in range(chance.randint(2, 5))]
        if wildcards and chance.random() < 0.5:
            chosen[chance.randrange(len(chosen))] = chance.choice(["*", "#"])
        return ".".join(chosen)

    return [segments(True) for _ in range(PATTERNS)], [segments(False) for _ in range(TOPICS)]


def _hostile() -> tuple[list[str], list[str]]:
    """As many beginnings as there can be that every topic has, and an end that none has."""
    chance = random.Random(1)
    patterns = [".".join([*chance.choices("*#a", k=15), "never"]) for _ in range(PATTERNS)]
    return patterns, [".".join(chance.choices("abc", k=16)) for _ in range(TOPICS)]


def _measure(name: str, patterns: list[str], topics: list[str], repeat: int) -> Figure:
    index: PatternIndex[int] = PatternIndex()
    for number, pattern in enumerate(patterns):
        index.add(pattern, number)
    taken = []
    for _ in range(repeat):
        start = time.perf_counter()
        for topic in topics:
            index.match(topic)
        taken.append((time.perf_counter() - start) / len(topics) * 1e6)
    median = statistics.median(taken)
    return Figure(name, 50.0, median, median / 50, 1.0, unit="µs", is_lower_better=True)
