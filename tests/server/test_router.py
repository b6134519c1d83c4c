"""The router of a bus inside a user's app: it brings its start and stop, and leaves the rest of the app alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, WebSocketException
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import HTTPConnection
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from eventbus_fastapi import EventBus
from tests.server.asking import app_of, asking, assert_problem, bus_on
from tests.serving import serving
from tests.waiting import eventually

EVENT = {"topic": "a", "payload": 1}


@contextlib.asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Run the app's lifespan and give a client of it."""
    async with app.router.lifespan_context(app), asking(app) as client:
        yield client


# --- start and stop ------------------------------------------------------------------------------


async def test_including_the_router_is_all_it_takes(tmp_path: Path) -> None:
    eventbus = bus_on(tmp_path)

    async with running(app_of(eventbus)) as http:
        assert (await http.post("/publish", json=EVENT)).status_code == 201
        assert eventbus.node.is_running

    assert not eventbus.node.is_running


def test_making_a_router_touches_no_file(tmp_path: Path) -> None:
    app_of(EventBus(f"sqlite+aiosqlite:///{tmp_path}/eventbus.db"))

    assert list(tmp_path.iterdir()) == []


async def test_the_bus_runs_inside_the_lifespan_of_the_app(tmp_path: Path) -> None:
    eventbus = bus_on(tmp_path)
    seen: list[tuple[str, bool]] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        seen.append(("start", eventbus.node.is_running))
        yield {"mine": "kept"}
        seen.append(("stop", eventbus.node.is_running))

    app = FastAPI(lifespan=lifespan)
    app.include_router(eventbus.router())

    async with app.router.lifespan_context(app) as state:
        seen.append(("run", eventbus.node.is_running))

    assert seen == [("start", False), ("run", True), ("stop", False)]
    assert state == {"mine": "kept"}


async def test_an_app_that_starts_the_bus_itself_may_include_its_router(tmp_path: Path) -> None:
    eventbus = bus_on(tmp_path)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with eventbus:
            await eventbus.publish("app.started", {})
            yield

    app = FastAPI(lifespan=lifespan)
    app.include_router(eventbus.router())

    async with running(app) as http:
        assert (await http.post("/publish", json=EVENT)).json()["seq"] == 2
    assert not eventbus.node.is_running


async def test_an_app_may_run_twice(tmp_path: Path) -> None:
    app = app_of(bus_on(tmp_path))

    for seq in (1, 2):
        async with running(app) as http:
            assert (await http.post("/publish", json=EVENT)).json()["seq"] == seq


async def test_the_bus_starts_from_a_router_inside_a_router(tmp_path: Path) -> None:
    outer = APIRouter(prefix="/outer")
    outer.include_router(bus_on(tmp_path).router(), prefix="/bus")
    app = FastAPI()
    app.include_router(outer, prefix="/api")

    async with running(app) as http:
        assert (await http.post("/api/outer/bus/publish", json=EVENT)).status_code == 201


async def test_every_route_takes_the_prefix(tmp_path: Path) -> None:
    app = FastAPI()
    app.include_router(bus_on(tmp_path).router(), prefix="/bus")

    async with serving(app) as served, httpx.AsyncClient(base_url=f"{served.http}/bus") as http:
        assert (await http.post("/publish", json=EVENT)).json()["seq"] == 1
        for path in ("/events", "/events/1", "/healthz", "/readyz"):
            assert (await http.get(path)).status_code == 200
        async with connect(f"ws://127.0.0.1:{served.port}/bus/ws") as socket:
            await socket.send('{"type": "ping", "id": 1}')
            assert await socket.recv() == '{"type":"ok","id":1}'


async def test_a_mounted_app_works_when_the_outer_app_starts_the_bus(tmp_path: Path) -> None:
    eventbus = bus_on(tmp_path)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with eventbus:
            yield

    outer = FastAPI(lifespan=lifespan)
    outer.mount("/bus", app_of(eventbus))

    async with running(outer) as http:
        assert (await http.post("/bus/publish", json=EVENT)).status_code == 201


async def test_a_mounted_app_whose_bus_nobody_starts_says_so(tmp_path: Path) -> None:
    outer = FastAPI()
    outer.mount("/bus", app_of(bus_on(tmp_path)))

    async with running(outer) as http:
        assert_problem(await http.post("/bus/publish", json=EVENT), 503, "server.not_running", "not running")


async def test_two_buses_live_in_one_app(tmp_path: Path) -> None:
    buses = {name: EventBus(f"sqlite+aiosqlite:///{tmp_path}/{name}.db") for name in ("one", "two")}
    app = FastAPI()
    for name, eventbus in buses.items():
        app.include_router(eventbus.router(), prefix=f"/{name}")

    async with running(app) as http:
        await http.post("/one/publish", json=EVENT)
        assert (await http.get("/one/events")).json()["head"] == 1
        assert (await http.get("/two/events")).json()["head"] == 0

    paths = app.openapi()["paths"]  # two operations of one id are a warning here, and so an error
    assert paths["/one/publish"]["post"]["operationId"] == "eventbus_publish_one"
    assert paths["/two/events/{seq}"]["get"]["operationId"] == "eventbus_get_event_two"


# --- the rest of the app -------------------------------------------------------------------------


async def test_the_app_keeps_its_own_errors(tmp_path: Path) -> None:
    app = app_of(bus_on(tmp_path))

    @app.get("/mine")
    async def mine(number: int) -> int:
        return number

    async with running(app) as http:
        refused, unknown = await http.get("/mine", params={"number": "x"}), await http.get("/nothing")

    assert isinstance(refused.json()["detail"], list)
    assert unknown.json() == {"detail": "Not Found"}
    assert not [key for key in app.exception_handlers if key is Exception]


async def test_handlers_of_the_app_do_not_change_the_answers_of_the_bus(tmp_path: Path) -> None:
    app = app_of(bus_on(tmp_path))

    @app.exception_handler(Exception)
    @app.exception_handler(StarletteHTTPException)
    async def mine(request: Request, exc: Exception) -> PlainTextResponse:
        return PlainTextResponse("mine", 418)

    async with running(app) as http:
        assert_problem(await http.get("/events/99"), 404, "event.not_found")
        assert_problem(await http.get("/events/x"), 422, "request.invalid")
        assert (await http.get("/nothing")).text == "mine"


@pytest.mark.parametrize("prefix", ["", "/bus"])
async def test_another_method_on_a_path_of_the_bus_is_a_problem(tmp_path: Path, prefix: str) -> None:
    app = FastAPI(docs_url=None)
    app.include_router(bus_on(tmp_path).router(), prefix=prefix)

    async with running(app) as http:
        answer = await http.get(f"{prefix}/publish")

    assert_problem(answer, 405, "request.invalid", f"GET {prefix}/publish: expected POST")
    assert answer.headers["allow"] == "POST"


async def test_the_app_may_have_another_method_on_a_path_of_the_bus(tmp_path: Path) -> None:
    app = app_of(bus_on(tmp_path))

    @app.post("/events")
    async def mine() -> str:
        return "mine"

    async with running(app) as http:
        assert (await http.post("/events")).json() == "mine"
        assert (await http.get("/events")).json()["head"] == 0
        assert (await http.delete("/events")).status_code == 405


async def test_dependencies_of_the_app_guard_every_route(tmp_path: Path) -> None:
    def guard(authorization: Annotated[str | None, Header()] = None) -> None:
        if authorization != "Bearer secret":
            raise HTTPException(401, "who are you?", {"WWW-Authenticate": "Bearer"})

    app = FastAPI()
    app.include_router(bus_on(tmp_path).router(), dependencies=[Depends(guard)])

    async with serving(app) as served, httpx.AsyncClient(base_url=served.http) as http:
        for path in ("/events", "/events/1", "/healthz", "/readyz"):
            refused = await http.get(path)
            # What the app raises goes to the app's own handlers.
            assert (refused.status_code, refused.json()) == (401, {"detail": "who are you?"})
        assert (await http.post("/publish", json=EVENT)).status_code == 401
        with pytest.raises(InvalidStatus) as refusal:
            await connect(served.ws)
        assert refusal.value.response.status_code == 401

        headers = {"authorization": "Bearer secret"}
        assert (await http.post("/publish", json=EVENT, headers=headers)).status_code == 201
        async with connect(served.ws, additional_headers=headers) as socket:
            await socket.send('{"type": "ping", "id": 1}')
            assert await socket.recv() == '{"type":"ok","id":1}'


async def test_a_dependency_may_refuse_only_the_websocket(tmp_path: Path) -> None:
    def guard() -> None:
        raise WebSocketException(1008)

    app = FastAPI()
    app.include_router(bus_on(tmp_path).router(), dependencies=[Depends(guard)])

    async with serving(app) as served:
        with pytest.raises(InvalidStatus) as refusal:
            await connect(served.ws)
    assert refusal.value.response.status_code == 403


async def test_a_page_of_somebody_else_gets_nowhere_with_the_cookie_that_a_dependency_reads(tmp_path: Path) -> None:
    """A browser sends it whichever page asks, and opens a WebSocket to anywhere."""

    def guard(connection: HTTPConnection) -> None:
        if connection.cookies.get("session") != "good":
            raise HTTPException(401)

    app = FastAPI()
    app.include_router(bus_on(tmp_path).router(), dependencies=[Depends(guard)])
    async with serving(app) as served, httpx.AsyncClient(base_url=served.http, trust_env=False) as http:
        theirs, ours = (
            {"Cookie": "session=good", "Origin": origin} for origin in ("https://evil.example", served.http)
        )

        refused = await http.post("/publish", json=EVENT, headers=theirs)
        with pytest.raises(InvalidStatus) as denied:
            await connect(served.ws, additional_headers=theirs, proxy=None)

        assert_problem(refused, 403, "origin.forbidden", "https://evil.example", "EVENTBUS_ALLOWED_ORIGINS")
        assert denied.value.response.status_code == 403
        assert (await http.post("/publish", json=EVENT, headers=ours)).status_code == 201
        async with connect(served.ws, additional_headers=ours, proxy=None):
            pass


async def test_an_error_that_a_dependency_raises_reaches_the_handler_of_the_app(tmp_path: Path) -> None:
    class MyError(Exception):
        pass

    def guard() -> None:
        raise MyError

    app = FastAPI()
    app.include_router(bus_on(tmp_path).router(), dependencies=[Depends(guard)])

    @app.exception_handler(MyError)
    async def mine(request: Request, exc: MyError) -> PlainTextResponse:
        return PlainTextResponse("mine", 418)

    async with running(app) as http:
        assert (await http.get("/events")).status_code == 418


async def test_a_parameter_of_a_dependency_that_is_wrong_is_a_problem_too(tmp_path: Path) -> None:
    def guard(x_tenant: Annotated[int, Header()]) -> None: ...

    app = FastAPI()
    app.include_router(bus_on(tmp_path).router(), dependencies=[Depends(guard)])

    async with running(app) as http:
        assert_problem(await http.get("/events"), 422, "request.invalid", "header parameter 'x-tenant'", "required")


async def test_a_body_limit_of_the_app_holds_for_the_bus(tmp_path: Path) -> None:
    app = FastAPI(max_body_size=100)
    app.include_router(bus_on(tmp_path).router())

    async with running(app) as http:
        answer = await http.post("/publish", json={"topic": "a", "payload": "x" * 200})

    assert answer.status_code == 413


# --- faults --------------------------------------------------------------------------------------


async def test_a_fault_of_ours_is_logged_and_told_without_details(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    eventbus = bus_on(tmp_path)

    async def fault(seq: int) -> Any:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(eventbus.node, "get", fault)
    async with running(app_of(eventbus)) as http:
        answer = await http.get("/events/1")

    assert_problem(answer, 500, "server.internal", "log")
    assert "secret" not in answer.text
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


async def test_a_client_that_leaves_in_the_middle_of_a_body_is_not_a_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    eventbus = bus_on(tmp_path)
    async with serving(app_of(eventbus)) as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        head = "POST /publish HTTP/1.1\r\nhost: bus\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
        writer.write(head.encode() + b'{"topic": "a"')
        await eventually(lambda: served.server.server_state.tasks)

        writer.close()
        await writer.wait_closed()
        await eventually(lambda: not served.server.server_state.tasks)

        assert (await eventbus.head()).last_seq == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
