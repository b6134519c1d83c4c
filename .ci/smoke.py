"""Whether a bus answers, stores an event and gives it back, and has its client for browsers and its dashboard.

Standard library alone: it looks at an installed bus.

smoke.py URL: exit 0 once it does. smoke.py free-port: print a port that nobody uses.
"""

from __future__ import annotations

import json
import socket
import sys
import time
import urllib.request
from typing import Any

PATIENCE = 60.0
"""Seconds that a server may take to start; `make run` may have to install it first."""


def main(argument: str) -> None:
    if argument == "free-port":
        print(free_port())
        return
    wait_until_healthy(argument)
    receipt = ask(argument + "/publish", {"topic": "smoke.test", "payload": {"n": 1}})
    page = json.dumps(ask(argument + "/events?pattern=smoke.*&after=0"))
    if receipt["message_id"] not in page:
        sys.exit(f"published {receipt}, but the log holds {page}")
    with urllib.request.urlopen(argument + "/client.js", timeout=10) as script:
        if b"export class EventBusClient" not in script.read():
            sys.exit("/client.js is not the client for browsers")
    for page, part in (("/dashboard", b"<h1>Overview</h1>"), ("/dashboard/static/dashboard.css", b":root")):
        with urllib.request.urlopen(argument + page, timeout=10) as shown:
            if part not in shown.read():
                sys.exit(f"{page} is not of the dashboard")
    print(f"{argument} is healthy, and stored and returned seq {receipt['seq']}")


def wait_until_healthy(url: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            ask(url + "/healthz")
        except OSError as exc:
            if time.monotonic() > deadline:
                sys.exit(f"{url}/healthz does not answer after {PATIENCE:g} s: {exc}")
            time.sleep(0.1)
        else:
            return


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    """GET, or POST with a body; the answer must be JSON and a success."""
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


if __name__ == "__main__":
    main(sys.argv[1])
