"""send_email.py: handlers in three queues, one that is tried again, and an end by Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tests.processes import CHECKOUT, Process, environment

LINES = [
    "made the report 'sales' for smtp.example",
    "sent 'Welcome' to first@example.org by smtp.example, attempt 2",
    "sent 'Your order' to second@example.org by smtp.example, attempt 1",
    "waiting for Ctrl-C",
]


async def test_every_email_is_sent_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(CHECKOUT / "examples" / "send_email.py")]
    async with Process.running(command, cwd=tmp_path, env=environment(TMPDIR=str(tmp_path))) as process:
        for line in LINES:
            await process.line(line)
        assert await process.interrupt(signal.SIGINT) == 0, process.output
        assert [line for line in process.lines if "failed" not in line][-2:] == ["ending", "everything was done"]
        assert sum("failed at seq 1, attempt 1, next in 0.0 s: ConnectionError" in line for line in process.lines) == 1
    assert os.listdir(tmp_path) == []
