"""A program that keeps a processor busy for a share of the time and talks to nobody: `hostile_crowd` compares with it.

python -m tests.faults.busy 0.2
"""

from __future__ import annotations

import argparse
import time

PERIOD = 0.05


def keep_busy(share: float) -> None:
    """Compute for a share of each period, in the processor's own time."""
    while True:
        ends = time.monotonic() + PERIOD
        until = time.process_time() + PERIOD * share
        while time.process_time() < until:
            pass
        time.sleep(max(ends - time.monotonic(), 0.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("share", type=float, help="of the time of one processor")
    keep_busy(parser.parse_args().share)


if __name__ == "__main__":
    main()
