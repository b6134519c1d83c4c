"""The Chromium of this machine, started once for a run of the tests. None is ever downloaded."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.unavailable import unavailable

CHROMIUM = "EVENTBUS_TEST_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
START = 30.0
"""Seconds that it has to start: it is a large program, and machines of CI are slow."""

OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # root and containers have none; the pages are ours
    "--disable-dev-shm-usage",  # of a few MB in containers
    "--disable-gpu",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--password-store=basic",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    # A test that opens two pages means both: one that is not looked at keeps its timers.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--remote-debugging-port=0",
)


def find_chromium() -> str:
    """Return the path of the Chromium that the environment names, or of one that is installed."""
    if named := os.environ.get(CHROMIUM):
        return named
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return found or unavailable(f"no Chromium: none of {', '.join(NAMES)} is installed, and {CHROMIUM} names none")


@contextlib.contextmanager
def running_chromium(directory: Path) -> Iterator[str]:
    """Run Chromium until the block ends, with its profile in a directory; yield where it can be driven from."""
    log = directory / "chromium.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [find_chromium(), *OPTIONS, f"--user-data-dir={directory}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its many processes end together
        )
    try:
        yield _endpoint(directory, process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _endpoint(directory: Path, process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until it listens: it writes its port and path into a file."""
    deadline = time.monotonic() + START
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError, ValueError):
            port, path = (directory / "DevToolsActivePort").read_text().split()
            return f"ws://127.0.0.1:{port}{path}"
        time.sleep(0.01)
    raise AssertionError(f"Chromium did not start:\n{log.read_text(errors='replace')}")
