"""`GET /client.js`: the client for browsers, as a file."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI

from eventbus_fastapi.auth import Principal
from eventbus_fastapi.bus import EventBus
from tests.server.asking import app_of, asking, bus_on
from tests.tables import log_at


async def test_it_is_a_module_that_is_asked_for_again_and_sent_once(tmp_path: Path) -> None:
    async with asking(app_of(bus_on(tmp_path))) as client:
        answer = await client.get("/client.js")
        assert answer.status_code == 200
        assert "export class EventBusClient" in answer.text
        assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"
        etag = answer.headers["etag"]
        for tags in (etag, f'"other", W/{etag}', "*"):
            again = await client.get("/client.js", headers={"if-none-match": tags})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag), tags
        other = await client.get("/client.js", headers={"if-none-match": '"other"'})
        assert other.status_code == 200


async def test_it_needs_no_credentials_and_follows_the_prefix(tmp_path: Path) -> None:
    bus = EventBus(log_at(tmp_path / "bus.db"), authenticate=lambda connection: Principal("nobody"))
    app = FastAPI()
    app.include_router(bus.router(), prefix="/bus")
    async with asking(app) as client:
        assert (await client.get("/bus/client.js", headers={"origin": "https://elsewhere.example"})).status_code == 200
        assert (await client.post("/bus/client.js")).status_code == 405


async def test_it_is_small(tmp_path: Path) -> None:
    """A page loads all of it: fewer than 400 lines, with its types."""
    async with asking(app_of(bus_on(tmp_path))) as client:
        lines = (await client.get("/client.js")).text.splitlines()
    assert 300 < len(lines) < 400
    assert max(map(len, lines)) <= 126
