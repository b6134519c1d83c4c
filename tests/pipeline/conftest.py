"""Fixtures for tests of the pipeline's stages: a store in memory, with real statements and real transactions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import Store, open_store

MEMORY = "sqlite+aiosqlite:///:memory:"

OpenNode = Callable[..., Awaitable[Node]]


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    """A started store that lives in memory."""
    store = open_store(Settings(database_url=MEMORY))
    await store.start()
    yield store
    await store.stop()


@pytest.fixture
async def open_node() -> AsyncIterator[OpenNode]:
    """Start a node, by default one in memory; all are stopped at the end."""
    nodes: list[Node] = []

    async def open_node(**settings: Any) -> Node:
        node = Node(Settings(**{"database_url": MEMORY, **settings}))
        nodes.append(node)
        await node.start()
        return node

    yield open_node
    for node in reversed(nodes):
        await node.stop()


@pytest.fixture
async def node(open_node: OpenNode) -> Node:
    """A running node in memory."""
    return await open_node()
