"""The supervisor: keeps several worker processes running, and passes on the signal to end.

Each process knows by a pipe whether the supervisor is there: it reads from it, and nothing is ever written. When the
supervisor is gone, however that came about, the pipe ends, and so does the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from eventbus_fastapi.cli.alive import TOUCH_EVERY, AliveFile, WatchedFile

logger = logging.getLogger(__name__)

RESTART_PAUSE = 1.0
"""Seconds until a process that has ended by itself is started again."""
KILL_AFTER = 15.0
"""Seconds beyond the grace time after which a process that does not end is killed."""
LOOK_EVERY = 0.1
"""Seconds between two looks at the processes."""


class Supervisor:
    """See the module's docstring.

    Args:
        command: what each process runs; the options `--parent` and `--alive-file` are added.
        count: how many of them.
        grace: seconds that they take to end.
        alive: touched while the files of all of them are fresh; None: nobody asks.
    """

    def __init__(self, command: Sequence[str], *, count: int, grace: float, alive: AliveFile | None) -> None:
        self._command = command
        self._count = count
        self._grace = grace
        self._alive = alive
        self._beat_at = 0.0
        self._is_ending = False

    def run(self) -> int:
        """Keep them running until SIGTERM or SIGINT; return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        self._parent, self._lifeline = os.pipe()  # the other end is ours alone, and closed by our end
        with tempfile.TemporaryDirectory(prefix="eventbus-worker-") as directory:
            self._files = [WatchedFile(Path(directory) / str(place)) for place in range(self._count)]
            running = [self._start(file) for file in self._files]
            while not self._is_ending:
                for place, process in enumerate(running):
                    if process.poll() is not None and not self._is_ending:
                        logger.error("a worker process ended with %s; it is replaced", process.returncode)
                        time.sleep(RESTART_PAUSE)
                        running[place] = self._start(self._files[place])
                self._beat()
                time.sleep(LOOK_EVERY)
            return self._end_all(running)

    def _end(self, number: int, frame: object) -> None:
        self._is_ending = True

    def _end_all(self, running: Sequence[subprocess.Popen[bytes]]) -> int:
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self._grace + KILL_AFTER
        while any(process.poll() is None for process in running):
            if time.monotonic() > deadline:
                for process in running:
                    process.kill()
                deadline = float("inf")
            time.sleep(LOOK_EVERY)
        if self._alive is not None:
            self._alive.remove()
        return 1 if any(process.returncode for process in running) else 0

    def _start(self, file: WatchedFile) -> subprocess.Popen[bytes]:
        command = [*self._command, "--parent", str(self._parent)]
        if self._alive is not None:
            command += ["--alive-file", str(file.path)]
        # A session of its own: a Ctrl-C is passed on by us alone.
        return subprocess.Popen(command, start_new_session=True, pass_fds=[self._parent])  # noqa: S603 - our own

    def _beat(self) -> None:
        """Touch our own file, where all of theirs are fresh."""
        if self._alive is None or time.monotonic() < self._beat_at:
            return
        self._beat_at = time.monotonic() + TOUCH_EVERY
        if all([file.is_fresh() for file in self._files]):  # noqa: C419 - each is to be looked at
            self._alive.touch()


def end_with_parent(parent: int, end: Callable[[], None], *, grace: float) -> None:
    """Have this process end within its grace time when the supervisor is gone, by force where it hangs.

    Args:
        parent: the pipe whose other end the supervisor holds.
        end: begins the end; called in the event loop of the caller.
        grace: seconds that the end may take.
    """
    loop = asyncio.get_running_loop()

    def watch() -> None:
        while os.read(parent, 1):
            pass
        logger.error("the supervisor is gone; the worker ends")
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(end)
        time.sleep(grace + KILL_AFTER)
        sys.stderr.flush()
        os._exit(1)

    threading.Thread(target=watch, name="eventbus-parent", daemon=True).start()
