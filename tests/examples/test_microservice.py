"""microservice/: two services in two processes, of which either may be killed."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests import documents
from tests.documents import Dialogue
from tests.examples.running import free_port
from tests.processes import CHECKOUT, Process, environment
from tests.waiting import eventually

MICROSERVICE = CHECKOUT / "examples" / "microservice"
README = MICROSERVICE / "README.md"
ORDERS = "uvicorn orders:app --port 3000"
SHIPPING = "uvicorn shipping:app --port 3001"
SHIPMENTS = "curl 127.0.0.1:3001/shipments"


class Terminal:
    """Where the commands of the README are typed: in a directory and with ports that nobody else uses."""

    def __init__(self, directory: Path) -> None:
        shutil.copytree(MICROSERVICE, directory, dirs_exist_ok=True)
        self._directory = directory
        self._ports = {"3000": str(free_port()), "3001": str(free_port())}

    @contextlib.asynccontextmanager
    async def serve(self, command: str) -> AsyncIterator[Process]:
        """Run a service until the block ends, and then kill it with SIGKILL; it answers when the block begins."""
        words = shlex.split(self._moved(command))
        variables = dict(word.split("=") for word in words if "=" in word)
        program = [sys.executable, "-m", *(word for word in words if "=" not in word)]
        env = environment(BUS_URL=self._moved("ws://127.0.0.1:3000/ws"), **variables)
        async with Process.running(program, cwd=self._directory, env=env) as process:
            await process.line(f"running on http://127.0.0.1:{words[-1]}")
            yield process

    async def ask(self, curl: str) -> str:
        """Return what a curl prints."""
        options = ["--silent", "--show-error", "--noproxy", "*"]
        words = shlex.split(self._moved(curl))
        process = await asyncio.create_subprocess_exec(words[0], *options, *words[1:], stdout=PIPE)
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        return out.decode().strip()

    async def follow(self, dialogue: Dialogue) -> None:
        """Ask, once if that changes something and else until the answer is the one that is shown."""
        if "-d" in shlex.split(dialogue.command):
            assert await self.ask(dialogue.command) == dialogue.output
        else:
            await eventually(lambda: self._shows(dialogue))

    async def _shows(self, dialogue: Dialogue) -> bool:
        printed = await self.ask(dialogue.command)
        assert printed == dialogue.output
        return True

    def _moved(self, command: str) -> str:
        return re.sub(r"\b300[01]\b", lambda port: self._ports[port[0]], command)


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    return Terminal(tmp_path)


async def test_a_shipping_service_that_is_killed_misses_no_order_and_ships_none_twice(terminal: Terminal) -> None:
    """Given the README, when its commands are typed one after the other, then each prints what stands below it."""
    consoles = [block for block in documents.blocks(README) if block.language == "console"]
    (orders,), (slow,), first, second, (restart,), last = map(documents.dialogues, consoles)
    async with terminal.serve(orders.command):
        async with terminal.serve(slow.command):
            for dialogue in first:
                await terminal.follow(dialogue)
        for dialogue in second:
            await terminal.follow(dialogue)
        async with terminal.serve(restart.command) as shipping:
            for line in restart.output.splitlines():
                await shipping.line(line)
            for dialogue in last:
                await terminal.follow(dialogue)


async def test_an_orders_service_that_is_killed_loses_no_order(terminal: Terminal) -> None:
    """Given an order that was not acknowledged, when the node that gave it out is killed, then the next one does."""
    orders = f"EVENTBUS_LEASE=1 {ORDERS}"
    place = 'curl 127.0.0.1:3000/orders -H \'content-type: application/json\' -d \'{"id": %d, "item": "book"}\''
    async with terminal.serve(f"PAUSE=60 {SHIPPING}") as shipping:
        async with terminal.serve(orders):
            await terminal.ask(place % 1)
            await shipping.line("shipped order 1")
        async with terminal.serve(orders):
            assert await terminal.ask(place % 1) == '{"detail":"there is an order 1 already"}'
            await terminal.ask(place % 2)
            await shipping.line("order 1 comes again, attempt 2: it is shipped already")
            await shipping.line("shipped order 2")
            await terminal.follow(
                Dialogue(SHIPMENTS, '[{"order":1,"item":"book","attempt":2},{"order":2,"item":"book","attempt":1}]')
            )
