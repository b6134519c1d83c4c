"""`eventbus serve` and the command `uvicorn`: who may come in, and where a bus listens that asks nobody."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from eventbus_fastapi.server import uvicorn_log
from tests.cli.command_line import Command, url_in
from tests.examples.running import free_port
from tests.processes import EVENTBUS, Process, environment

KEY = "q9hJ2mXv7RtLw3cY5bNz8sKp"
ACCESS = f'[[principals]]\nname = "shop"\nkey = "{KEY}"\npublish = ["shop.#"]\nsubscribe = ["shop.#"]\n'
UVICORN = [sys.executable, "-m", "uvicorn", "eventbus_fastapi.app:app", "--log-level", "debug"]
OPEN = "0.0.0.0"


def test_serve_does_not_listen_for_others_without_asking_them_who_they_are(eventbus: Command, tmp_path: Path) -> None:
    done = eventbus("serve", "--host", OPEN, "--port", "0", "--database-url", url_in(tmp_path))

    assert done.code == 1
    assert "on 0.0.0.0 anybody may publish and read everything; say who may do what in EVENTBUS_AUTH_FILE" in done.error
    assert not (tmp_path / "eventbus.db").exists()


def test_serve_names_what_is_wrong_with_the_file(
    eventbus: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "access.toml"
    path.write_text('[[principals]]\nname = "shop"\nkey = "hunter2"\n')
    monkeypatch.setenv("EVENTBUS_AUTH_FILE", str(path))

    done = eventbus("serve", "--port", "0", "--database-url", url_in(tmp_path))

    assert done.code == 1
    assert "access.toml: principals[0] ('shop'): the key is weak" in done.error
    assert "hunter2" not in done.error


def test_tickets_are_of_one_process(eventbus: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTBUS_TICKETS", "true")

    done = eventbus("serve", "--workers", "2", "--database-url", url_in(tmp_path))

    assert done.code == 1
    assert "--workers 1" in done.error


@contextlib.asynccontextmanager
async def serving(directory: Path, *arguments: str, **variables: str) -> AsyncIterator[tuple[Process, int]]:
    env = environment(EVENTBUS_DATABASE_URL=url_in(directory), **variables)
    async with Process.running([*EVENTBUS, "serve", "--port", "0", *arguments], cwd=directory, env=env) as process:
        line = await process.line(" serves http://")
        await process.line("/docs")
        yield process, int(line.split()[3].rpartition(":")[2])


async def test_with_a_file_serve_listens_anywhere_and_asks_everybody(tmp_path: Path) -> None:
    (tmp_path / "access.toml").write_text(ACCESS)
    variables = {"EVENTBUS_AUTH_FILE": "access.toml", "EVENTBUS_TICKETS": "true"}
    async with serving(tmp_path, "--host", OPEN, "--access-log", **variables) as (process, port):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            event = {"topic": "shop.x", "payload": 1}
            assert (await http.post("/publish", json=event)).status_code == 401
            assert (await http.post("/publish", json=event, headers={"x-api-key": KEY})).status_code == 201
            assert (await http.get("/healthz")).status_code == 200
            ticket = (await http.post("/tickets", headers={"x-api-key": KEY})).json()["ticket"]
            assert (await http.get(f"/events?ticket={ticket}")).status_code == 200
            with pytest.raises(InvalidStatus):
                await connect(f"ws://127.0.0.1:{port}/ws?ticket={ticket}", proxy=None)
        for variable, code in (({"EVENTBUS_TOKEN": KEY}, 0), ({}, 1)):
            command = [*EVENTBUS, "publish", "shop.y", "2", "--url", f"http://127.0.0.1:{port}"]
            async with Process.running(command, cwd=tmp_path, env=environment(**variable)) as publisher:
                assert await publisher.end() == code, publisher.output
        await process.line('"GET /events')
    assert ticket not in process.output
    assert KEY not in process.output
    assert "$EVENTBUS_TOKEN" in process.output


async def test_insecure_is_a_word_for_it(tmp_path: Path) -> None:
    async with serving(tmp_path, "--host", OPEN, "--insecure") as (_, port):
        for host in ("127.0.0.1", own_address()):
            async with httpx.AsyncClient(trust_env=False) as http:
                assert (await http.get(f"http://{host}:{port}/events")).status_code == 200


async def test_no_page_of_another_origin_may_use_a_bus_that_asks_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, port):
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://127.0.0.1:{port}/ws", origin="https://evil.example", proxy=None)  # type: ignore[arg-type]
        assert refused.value.response.status_code == 403
        async with connect(f"ws://127.0.0.1:{port}/ws", origin=f"http://127.0.0.1:{port}", proxy=None):  # type: ignore[arg-type]
            pass


async def test_a_name_that_was_made_to_lead_here_is_none_of_the_bus(tmp_path: Path) -> None:
    """Given a page of somebody else whose name resolves to loopback by now, when it asks, then it is refused: to the
    browser they have one origin.
    """
    async with serving(tmp_path) as (_, port):
        evil = f"evil.example:{port}"
        headers = {"Host": evil, "Origin": f"http://{evil}"}
        async with httpx.AsyncClient(trust_env=False) as http:
            refused = await http.get(f"http://127.0.0.1:{port}/events", headers=headers)
            published = await http.post(f"http://127.0.0.1:{port}/publish", json={"topic": "a"}, headers=headers)
            assert (await http.get(f"http://localhost:{port}/events")).status_code == 200
        assert (refused.status_code, refused.json()["code"]) == (403, "auth.forbidden")
        assert f"not to '{evil}'" in refused.json()["message"]
        assert published.status_code == 403
        with pytest.raises(InvalidStatus) as denied:
            await connect(f"ws://{evil}/ws", origin=f"http://{evil}", host="127.0.0.1", port=port, proxy=None)  # type: ignore[arg-type]
        assert denied.value.response.status_code == 403


# --- uvicorn -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--host", OPEN], [f"--host={OPEN}"]])
async def test_the_command_uvicorn_does_not_start_for_others_either(tmp_path: Path, arguments: list[str]) -> None:
    env = environment(EVENTBUS_DATABASE_URL=url_in(tmp_path))
    async with Process.running([*UVICORN, "--port", "0", *arguments], cwd=tmp_path, env=env) as process:
        assert await process.end() == 1
    assert "on 0.0.0.0 anybody may publish and read everything" in process.output


async def test_a_server_that_hides_its_address_gets_no_further_than_the_first_request(tmp_path: Path) -> None:
    """Given a program that calls uvicorn itself, when somebody asks its outer address, then they are refused."""
    port = free_port()
    program = f"import uvicorn; uvicorn.run('eventbus_fastapi.app:app', host='{OPEN}', port={port})"
    env = environment(EVENTBUS_DATABASE_URL=url_in(tmp_path))
    async with Process.running([sys.executable, "-c", program], cwd=tmp_path, env=env) as process:
        await process.line("Uvicorn running on")
        outer = f"{own_address()}:{port}"
        async with httpx.AsyncClient(trust_env=False) as http:
            refused = await http.get(f"http://{outer}/events")
            assert (refused.status_code, refused.json()["code"]) == (403, "auth.forbidden")
            assert (await http.get(f"http://127.0.0.1:{port}/events")).status_code == 200
        with pytest.raises(InvalidStatus) as denied:
            await connect(f"ws://{outer}/ws", proxy=None)
        assert denied.value.response.status_code == 403


def own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent: it only chooses the way
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


def test_uvicorn_logs_no_ticket_of_an_app_that_stands_alone(caplog: pytest.LogCaptureFixture) -> None:
    uvicorn_log.quiet()
    uvicorn_log.quiet()
    with caplog.at_level(logging.INFO):
        logging.getLogger("uvicorn.error").info('%s - "WebSocket %s" [accepted]', "1.2.3.4:5", "/ws?a=1&ticket=s3cret")
        arguments = ("1.2.3.4:5", "GET", "/events?ticket=s3cret&after=0", "1.1", 200)
        logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', *arguments)
    assert "s3cret" not in caplog.text
    assert "/ws?a=1&ticket=…" in caplog.text
    assert "/events?ticket=…&after=0" in caplog.text
