"""A reader that takes nothing any more; see `zero_window`, which runs with the default times."""

from __future__ import annotations

import pytest

from tests.faults import zero_window
from tests.faults.processes import Processes


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(("way", "by"), [("v1", "serve"), ("plain", "uvicorn"), ("stream", "serve"), ("http", "serve")])
async def test_it_is_gone_and_its_memory_too(
    processes: Processes, database_url: str, way: zero_window.Way, by: zero_window.By
) -> None:
    numbers = await zero_window.run(
        processes, database_url, way=way, by=by, within=30, send_timeout=0.5, close_timeout=1
    )

    assert numbers["memory grew by, at most (MB)"] < 60
