"""Fixtures for the cases: processes that end with the test, and a node per kind of database that many tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.databases import KINDS, DatabaseFactory
from tests.faults.processes import Node, Processes, prepare


class Standing(NamedTuple):
    """A node that runs already; tests on it keep to topics of their own."""

    node: Node
    database_url: str


class StandingNodes:
    """A node on each kind of database, started when first asked for."""

    def __init__(self, processes: Processes, factory: Callable[[str], DatabaseFactory]) -> None:
        self._processes = processes
        self._factory = factory
        self._nodes: dict[str, Standing] = {}

    async def get(self, kind: str) -> Standing:
        if kind not in self._nodes:
            url = self._factory(kind).create()
            await prepare(url)
            node = await self._processes.node(url, name=f"standing-{kind}", busy_timeout=0.5)
            self._nodes[kind] = Standing(node, url)
        return self._nodes[kind]

    def drop_databases(self) -> None:
        for kind, standing in self._nodes.items():
            self._factory(kind).drop(standing.database_url)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what takes `standing` on every kind of database, or on those of the marker `databases`."""
    if "standing" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("databases")
        metafunc.parametrize("standing", marker.args if marker else KINDS, indirect=True)


@pytest.fixture
def processes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Processes]:
    """Start processes; at the end none is left, and none has written a traceback."""
    if "database_url" in request.fixturenames:
        request.getfixturevalue("database_url")  # made before them, it is dropped after them
    with Processes(tmp_path) as processes:
        yield processes
        processes.show()  # pytest keeps it for tests that fail


@pytest.fixture(scope="session")
def standing_nodes(
    database_factory: Callable[[str], DatabaseFactory], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StandingNodes]:
    with Processes(tmp_path_factory.mktemp("standing")) as processes:
        nodes = StandingNodes(processes, database_factory)
        yield nodes
    nodes.drop_databases()


@pytest.fixture
async def standing(request: pytest.FixtureRequest, standing_nodes: StandingNodes) -> Standing:
    """A node that runs already, on a database of one of KINDS."""
    return await standing_nodes.get(request.param)
