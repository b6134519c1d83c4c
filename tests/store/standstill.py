"""A process that stands still: its machine sleeps or is moved, or something keeps the process from running."""

from __future__ import annotations

import asyncio

import pytest


def stand_still(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have so much time pass while the event loop does not run, without waiting for it."""
    loop = asyncio.get_running_loop()
    time = loop.time
    monkeypatch.setattr(loop, "time", lambda: time() + seconds)
