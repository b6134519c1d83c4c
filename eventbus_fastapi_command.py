"""The script `eventbus`: it stands beside the package, so that Ctrl-C ends it quietly even while that is imported.

What the command does is in `eventbus_fastapi.cli`.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line of this process, and exit."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else whoever started it has it ignored
        signal.signal(signal.SIGINT, _end)
    from eventbus_fastapi import cli

    signal.signal(signal.SIGINT, before)
    cli.main()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)  # an exception could be lost in what is being imported, or shown with its traceback
