"""Fixtures for the dashboard: a bus on SQLite, and a browser on the same machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from eventbus_fastapi import EventBus
from tests.dashboard.browsing import Browser, browsing
from tests.server.asking import app_of, bus_on


@pytest.fixture
async def eventbus(tmp_path: Path) -> AsyncIterator[EventBus]:
    async with bus_on(tmp_path) as eventbus:
        yield eventbus


@pytest.fixture
async def browser(eventbus: EventBus) -> AsyncIterator[Browser]:
    async with browsing(app_of(eventbus)) as browser:
        yield browser
