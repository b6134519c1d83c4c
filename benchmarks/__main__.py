"""`python -m benchmarks [name …] [--repeat N]`."""

from __future__ import annotations

import argparse
import asyncio
import sys

from benchmarks import (
    fanned_out,
    fanout,
    handling,
    idle,
    latency,
    members,
    publishing,
    pubsub,
    reading,
    relaying,
    sqlite,
    topics,
    transactions,
    workers,
)

ALL = {
    "topics": topics.run,
    "sqlite": sqlite.run,
    "publish": publishing.run,
    "transactions": transactions.run,
    "read": reading.run,
    "latency": latency.run,
    "fanout": fanout.run,
    "fanned_out": fanned_out.run,
    "pubsub": pubsub.run,
    "idle": idle.run,
    "workers": workers.run,
    "handling": handling.run,
    "members": members.run,
    "relay": relaying.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measure the bus as ratios in one run.")
    parser.add_argument("names", nargs="*", choices=[*ALL, []], help=f"some of {', '.join(ALL)}; default: all")
    parser.add_argument("--repeat", type=int, default=5, help="turns of which the median is taken")
    arguments = parser.parse_args()
    missed = []
    for name in arguments.names or ALL:
        for figure in asyncio.run(ALL[name](arguments.repeat)):
            print(figure, flush=True)
            missed += [] if figure.is_met else [figure.name]
    if missed:
        sys.exit(f"{len(missed)} of the figures are not what was asked: {', '.join(missed)}")


if __name__ == "__main__":
    main()
