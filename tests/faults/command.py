"""Runs a case from the command line, on the databases asked for, and prints what it measured."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.databases import KINDS, open_factory
from tests.faults.processes import Processes

Numbers = Mapping[str, Any]
"""What a case measured, by name."""
Case = Callable[[Processes, str, argparse.Namespace], Awaitable[Numbers]]
"""A case: given the processes to start, the URL of an empty database and the options; raises if it does not hold."""


def run(
    case: Case,
    describe: str | None,
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    *,
    kinds: Sequence[str] = KINDS,
) -> None:
    """Run `case` on each kind of database that the command line names, or on all of `kinds`."""
    parser = argparse.ArgumentParser(description=describe, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=kinds, action="append", help="one of them; may be given again")
    add_options(parser)
    options = parser.parse_args()
    be_quiet()
    for kind in options.database or kinds:
        with tempfile.TemporaryDirectory(prefix="bus-fault-") as directory:
            _run_on(kind, case, options, Path(directory))


def be_quiet() -> None:
    """Log errors only, and end like any other error when told to: what was started ends as well."""
    logging.getLogger("eventbus_fastapi").setLevel(logging.ERROR)  # a lost connection is what a case is about
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def _run_on(kind: str, case: Case, options: argparse.Namespace, directory: Path) -> None:
    with open_factory(kind, directory) as factory:
        url = factory.create()
        began = time.monotonic()
        try:
            with Processes(directory) as processes:
                numbers = asyncio.run(_measure(case, processes, url, options))
        finally:
            factory.drop(url)
    show(kind, {**numbers, "seconds": time.monotonic() - began})


async def _measure(case: Case, processes: Processes, url: str, options: argparse.Namespace) -> Numbers:
    return await case(processes, url, options)


def show(title: str, numbers: Numbers) -> None:
    """Print numbers, one a line."""
    lines = [title, *(f"  {name:<44} {_text(value)}" for name, value in numbers.items()), ""]
    sys.stdout.write("\n".join(lines))
    sys.stdout.flush()


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of all do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
