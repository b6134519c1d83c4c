"""One `eventbus serve` for many attacks, and what its log must not have afterwards."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.databases import DatabaseFactory
from tests.faults.processes import Node, Processes, prepare

BODY_TIMEOUT = 1.0
RECORD = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z (?P<level>[A-Z]+) [\w.]+: ")
"""How a record begins."""
GREETING = 6
"""Lines that `eventbus serve` begins with."""


@pytest.fixture(scope="package", params=["sqlite", "postgresql"])
def attacked(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    database_factory: Callable[[str], DatabaseFactory],
) -> Iterator[Node]:
    """A standalone bus with its default limits. After all attacks it is still there, and its log has no fault of it."""
    factory = database_factory(request.param)
    url = factory.create()
    directory = tmp_path_factory.mktemp("attacked")
    try:
        with Processes(directory) as processes:
            node = asyncio.run(_serve(processes, url))
            yield node
            assert node.process.exit_code is None, "the server is gone"
            check_log(node.process.output)
    finally:
        factory.drop(url)


async def _serve(processes: Processes, url: str) -> Node:
    await prepare(url)
    return await processes.node(url, by="serve", body_timeout=BODY_TIMEOUT)


def check_log(log: Path) -> None:
    """Each line is a record of its own, without control characters; none is about a fault of the server."""
    lines = log.read_text(errors="surrogateescape").splitlines()
    for line in lines[GREETING:]:
        record = RECORD.match(line)
        assert record, f"a line that is no record: {line!a}"
        assert line.isprintable(), f"control characters in the log: {line!a}"
        assert record["level"] not in ("ERROR", "CRITICAL"), line
