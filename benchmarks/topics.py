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
    chance = random.Random(1)
    words = [f"word{number}" for number in range(300)]

    def segments(wildcards: bool) -> str:
        chosen = [chance.choice(words) for _ in range(chance.randint(2, 5))]
        if wildcards and chance.random() < 0.5:
            chosen[chance.randrange(len(chosen))] = chance.choice(["*", "#"])
        return ".".join(chosen)

    index: PatternIndex[int] = PatternIndex()
    for number in range(PATTERNS):
        index.add(segments(True), number)
    topics = [segments(False) for _ in range(TOPICS)]
    taken = []
    for _ in range(repeat):
        start = time.perf_counter()
        for topic in topics:
            index.match(topic)
        taken.append((time.perf_counter() - start) / TOPICS * 1e6)
    median = statistics.median(taken)
    name = "match one topic against 100,000 patterns"
    return [Figure(name, 50.0, median, median / 50, 1.0, unit="µs", is_lower_better=True)]
