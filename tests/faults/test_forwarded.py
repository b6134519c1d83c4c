"""Two services whose outboxes are forwarded while all is killed; see `forwarded`, which runs at any size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import forwarded
from tests.faults.processes import Processes


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("bus", "service"), [("sqlite", "postgresql"), ("postgresql", "mysql")])
async def test_the_log_holds_exactly_what_the_services_committed(
    tmp_path: Path, new_database: Callable[[str], str], bus: str, service: str
) -> None:
    bus_url, own_url = new_database(bus), new_database(service)
    with Processes(tmp_path) as processes:
        numbers = await forwarded.run(
            processes, bus_url, own_url, tmp_path, seconds=10, kill_every=0.7, pause=0.02, timeout=90
        )

    assert numbers["events in the log"] > 0
