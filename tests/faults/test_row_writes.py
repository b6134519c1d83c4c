"""What handling writes; see `row_writes`, which runs with any number of events."""

from __future__ import annotations

import pytest

from tests.faults import row_writes


@pytest.mark.databases("postgresql")
async def test_handling_writes_at_most_five_rows_per_hundred_events(database_url: str) -> None:
    await row_writes.run(database_url, count=3_000)
