"""The bus and a simple model of it are driven side by side, and no difference is found.

In the suite this is a small search, the same each time. `EVENTBUS_TEST_MODEL=2000` makes it one of so many examples of
fifty steps each, others each time; what it finds is made short, and printed as the calls that lead there:

    EVENTBUS_TEST_MODEL=2000 make test ARGS="tests/model -k postgresql"
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.databases import KINDS
from tests.model.machine import Place
from tests.model.meetings import Meetings
from tests.model.model import matches
from tests.model.stopped import StoppedClock
from tests.tables import TablePool, log_at, new_prefix

EXAMPLES = "EVENTBUS_TEST_MODEL"
"""The variable that says how many examples are searched."""
FEW = 12
STEPS = 50
HOURS = 12 * 3_600


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, new_database: Callable[[str], str], tmp_path: Path) -> Iterator[Place]:
    """Tables for one example after another, in a database whose clock stands still."""
    kind: str = request.param
    url = new_database(kind)
    with ExitStack() as stack:
        clock = StoppedClock(url)
        stack.callback(clock.close)
        pool = None if kind == "sqlite" else TablePool(url)
        if pool is not None:
            stack.callback(pool.close)

        def lend_tables(example: ExitStack) -> dict[str, Any]:
            if pool is None:
                path = tmp_path / f"{new_prefix()}.db"
                example.callback(path.unlink)
                return {"database_url": log_at(path)}
            tables = pool.take()
            example.callback(pool.give_back, tables)
            return {"database_url": url, "table_prefix": tables.prefix}

        yield Place(clock, lend_tables, is_single_writer=kind == "sqlite")


@pytest.mark.timeout(HOURS if EXAMPLES in os.environ else 600)  # while it makes a difference short, it takes long
def test_the_bus_and_the_model_do_not_differ(place: Place) -> None:
    examples = int(os.environ.get(EXAMPLES, FEW))
    run_state_machine_as_test(
        type("MachineHere", (Meetings,), {"place": place}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            derandomize=EXAMPLES not in os.environ,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),  # a loaded machine is slow, not wrong
        ),
    )


@pytest.mark.parametrize(
    ("pattern", "topic", "is_match"),
    [("a.*", "a.b", True), ("a.*", "a", False), ("a.#", "a", True), ("#.b.#", "a.b.c", True), ("b", "a.b", False)],
)
def test_the_model_knows_what_a_pattern_matches(pattern: str, topic: str, is_match: bool) -> None:
    assert matches(pattern, topic) is is_match
