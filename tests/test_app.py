"""The standalone app."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest
from openapi_spec_validator import validate
from websockets.asyncio.client import connect

from eventbus_fastapi import EventBusClient, Settings
from eventbus_fastapi.app import create_app
from eventbus_fastapi.errors import SettingsError
from eventbus_fastapi.version import VERSION
from tests.processes import Process, environment
from tests.server.asking import asking, assert_problem
from tests.serving import serving
from tests.waiting import eventually

EVENT = {"topic": "a", "payload": 1}


def settings_in(directory: Path) -> Settings:
    return Settings(database_url=f"sqlite+aiosqlite:///{directory}/eventbus.db")


def test_importing_the_module_touches_no_file(tmp_path: Path) -> None:
    script = "import eventbus_fastapi.app; print(eventbus_fastapi.app.app.title)"

    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)

    assert (done.stdout, done.stderr) == ("eventbus-fastapi\n", "")
    assert list(tmp_path.iterdir()) == []


def test_alone_in_its_process_it_is_not_collected_again_and_again(tmp_path: Path) -> None:
    """What is there before the first request took the loop a tenth of a second each time."""
    script = """if True:
        import asyncio, gc
        from eventbus_fastapi.app import app
        async def run():
            async with app.router.lifespan_context(app):
                print(gc.get_freeze_count() > 100_000)
        asyncio.run(run())
    """

    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)

    assert done.stdout == "True\n"


async def test_the_app_is_a_bus(tmp_path: Path) -> None:
    async with serving(create_app(settings_in(tmp_path))) as served, httpx.AsyncClient(base_url=served.http) as http:
        async with connect(served.ws) as socket:
            await socket.send('{"type": "subscribe", "pattern": "#", "id": 1}')
            await socket.recv()
            assert (await http.post("/publish", json=EVENT)).json()["seq"] == 1
            assert '"seq":1' in str(await socket.recv())
        assert (await http.get("/readyz")).status_code == 200


async def test_the_settings_are_those_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTBUS_DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path}/mine.db")
    monkeypatch.setenv("EVENTBUS_MAX_PAYLOAD", "10")
    app = create_app()

    async with app.state.eventbus, asking(app) as http:
        answer = await http.post("/publish", json={"topic": "a", "payload": "x" * 11})

    assert_problem(answer, 413, "payload.too_large", "limit is 10")
    assert await asyncio.to_thread((tmp_path / "mine.db").exists)


def test_a_setting_that_is_misspelt_is_an_error_that_names_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTBUS_DATABASE_URI", "x")

    with pytest.raises(SettingsError, match="EVENTBUS_DATABASE_URI; did you mean EVENTBUS_DATABASE_URL"):
        create_app()


async def test_the_landing_page_says_where_everything_is(tmp_path: Path) -> None:
    app = create_app(settings_in(tmp_path))

    async with app.state.eventbus, asking(app) as http:
        landing = (await http.get("/")).json()
        assert landing.pop("version") == VERSION
        assert landing == {
            "name": "eventbus-fastapi",
            "docs": "http://bus/docs",
            "dashboard": "http://bus/dashboard",
            "websocket": "ws://bus/ws",
            "publish": "http://bus/publish",
            "events": "http://bus/events",
            "stream": "http://bus/events/stream",
            "ready": "http://bus/readyz",
        }
        for name in ("docs", "events", "ready"):
            assert (await http.get(landing[name])).status_code == 200


async def test_the_landing_page_knows_the_path_that_a_proxy_serves_it_under(tmp_path: Path) -> None:
    app = create_app(settings_in(tmp_path))
    transport = httpx.ASGITransport(app, root_path="/bus")

    async with httpx.AsyncClient(transport=transport, base_url="https://example.org") as http:
        landing = (await http.get("/")).json()

    assert landing["websocket"] == "wss://example.org/bus/ws"
    assert landing["docs"] == "https://example.org/bus/docs"


async def test_the_documentation_is_valid_and_complete(tmp_path: Path) -> None:
    app = create_app(settings_in(tmp_path))

    async with asking(app) as http:
        document = (await http.get("/openapi.json")).json()
        page = await http.get("/docs")

    validate(document)
    assert {"/publish", "/events", "/groups", "/dead-letters", "/healthz", "/readyz"} < set(document["paths"])
    assert document["info"]["version"] == VERSION
    assert page.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/publish", 405), ("DELETE", "/events/1", 405)]
)
async def test_a_path_or_method_that_does_not_exist_is_a_problem_too(
    tmp_path: Path, method: str, path: str, status: int
) -> None:
    app = create_app(settings_in(tmp_path))

    async with asking(app) as http:
        answer = await http.request(method, path)

    assert_problem(answer, status, "request.invalid", f"{method} {path}", "/docs")
    assert ("allow" in answer.headers) == (status == 405)


# --- uvicorn's own command -----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def two_workers(directory: Path) -> AsyncIterator[tuple[Process, int]]:
    command = [sys.executable, "-m", "uvicorn", "eventbus_fastapi.app:app", "--workers", "2", "--port", "0"]
    env = environment(EVENTBUS_DATABASE_URL=f"sqlite+aiosqlite:///{directory}/eventbus.db")
    async with Process.running(command, cwd=directory, env=env) as process:
        line = await process.line("Uvicorn running on")
        yield process, int(line.split("http://127.0.0.1:")[1].split()[0])


def workers_with_sockets(process: Process, port: int) -> set[int]:
    """Return the processes below this one that hold an open connection of this port."""
    return {
        worker.pid
        for worker in psutil.Process(process.pid).children(recursive=True)
        for socket in worker.net_connections("tcp")
        if socket.status == psutil.CONN_ESTABLISHED and socket.laddr.port == port
    }


async def test_two_workers_on_one_sqlite_file_are_one_bus(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as (process, port), contextlib.AsyncExitStack() as stack:
        url = f"ws://127.0.0.1:{port}/ws"
        clients: list[EventBusClient] = []

        async def both_serve() -> bool:
            # The system hands each connection to either worker: connect until both have some.
            clients.append(await stack.enter_async_context(EventBusClient(url)))
            await clients[-1].wait_connected()
            return len(workers_with_sockets(process, port)) == 2

        await eventually(both_serve, timeout=60)
        subscriptions = [await stack.enter_async_context(client.subscribe("#")) for client in clients]

        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            answers = await asyncio.gather(
                *(http.post("/publish", json={"topic": "a", "payload": number}) for number in range(50))
            )
            receipts = await asyncio.gather(*(client.publish("a", 1) for client in clients))

        seqs = [answer.json()["seq"] for answer in answers] + [receipt.seq for receipt in receipts]
        for subscription in subscriptions:
            seen = [(await asyncio.wait_for(anext(subscription), 30)).seq for _ in seqs]
            assert seen == sorted(seqs) == list(range(1, len(seqs) + 1))
