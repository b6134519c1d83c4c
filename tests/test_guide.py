"""The guide: what its pages show as code runs, and does what they say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from eventbus_fastapi import EventBus
from tests import documents
from tests.processes import CHECKOUT, Process, environment
from tests.serving import serving
from tests.waiting import eventually

DOCS = CHECKOUT / "docs"


async def test_the_app_of_embed_md_places_orders_and_mails_their_receipts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program, script = documents.python_blocks(DOCS / "embed.md")
    namespace: dict[str, Any] = {"__name__": "shown"}
    await documents.run(program, namespace)
    async with serving(namespace["app"]) as server, httpx.AsyncClient(base_url=server.http, trust_env=False) as http:
        assert (await http.post("/orders", json={"order": 7, "total": 9.5})).status_code == 201
        await eventually(lambda: namespace["mailed"] == [7])
        [event] = (await http.get("/bus/events", params={"pattern": "order.*"})).json()["events"]
        assert event["payload"] == {"order": 7, "total": 9.5}
    await documents.run(script, namespace)


async def test_the_code_of_outbox_md_publishes_what_is_committed_and_nothing_else(tmp_path: Path) -> None:
    eventbus = EventBus(f"sqlite+aiosqlite:///{tmp_path}/shop.db")
    async with eventbus:
        async with AsyncSession(eventbus.engine) as session, session.begin():
            await session.execute(text("CREATE TABLE stock (item TEXT, left_over INTEGER)"))
        namespace: dict[str, Any] = {"eventbus": eventbus, "AsyncSession": AsyncSession, "text": text}
        for block in documents.python_blocks(DOCS / "outbox.md"):
            await documents.run(block, namespace)


async def test_the_programs_of_consume_md_print_what_they_read(tmp_path: Path) -> None:
    eventbus = EventBus(f"sqlite+aiosqlite:///{tmp_path}/shop.db")
    app = FastAPI()
    app.include_router(eventbus.router())
    expected = {"follow.py": "1 stock.changed", "share.py": "handled {'item': 'tea', 'left': 3} at attempt 1"}
    async with serving(app) as server:
        for name, line in expected.items():
            (tmp_path / name).write_text(documents.titled(DOCS / "consume.md", name))
            command = [sys.executable, name]
            async with Process.running(command, cwd=tmp_path, env=environment(BUS=server.ws)) as process:
                await process.line(line)


async def test_the_programs_of_outboxes_md_forward_what_they_publish(tmp_path: Path) -> None:
    app = FastAPI()
    app.include_router(EventBus(f"sqlite+aiosqlite:///{tmp_path}/elsewhere.db").router())
    expected = {"reached.py": "seq 1", "beside.py": "forwarded"}
    async with serving(app) as server:
        for name, line in expected.items():
            (tmp_path / name).write_text(documents.titled(DOCS / "outboxes.md", name))
            command = [sys.executable, name]
            async with Process.running(command, cwd=tmp_path, env=environment(BUS=server.ws)) as process:
                await process.line(line)
                assert await process.end() == 0
