"""Logs: one line a record, whatever a client sends; no payload, no secret."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.config
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from eventbus_fastapi import EventBusClient, GroupMessage
from eventbus_fastapi.store.failures import translate
from eventbus_fastapi.telemetry.logs import JsonFormatter, TextFormatter, config
from tests.cli.command_line import url_in
from tests.processes import EVENTBUS, Process, environment
from tests.server.asking import app_of, bus_on
from tests.serving import serving
from tests.waiting import eventually

EVIL = 'a\nINFO forged: b\r\x1b[31mred\x00\x85\u2028\u202e"}\ud800'
FORMATTERS = [TextFormatter(), JsonFormatter()]


def record(message: str, *args: object, name: str = "shop", **more: Any) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.WARNING, "shop.py", 1, message, args, more.pop("exc_info", None))
    made.__dict__.update(more)
    return made


def fault() -> Any:
    try:
        raise ValueError(EVIL)
    except ValueError:
        return sys.exc_info()


@pytest.mark.parametrize("formatter", FORMATTERS)
@pytest.mark.parametrize(
    "made",
    [
        record(EVIL),
        record("%s", EVIL),
        record("failed", exc_info=fault()),
        record("failed", stack_info="Stack:\n  here"),
        record("named", name=EVIL),
    ],
    ids=["message", "argument", "exception", "stack", "name"],
)
def test_a_record_is_one_line_of_characters_that_every_terminal_prints(
    formatter: logging.Formatter, made: logging.LogRecord
) -> None:
    line = formatter.format(made)
    assert line.isprintable()
    line.encode()


def test_a_line_of_text_says_when_how_bad_where_and_what() -> None:
    made = record("sequenced %d events", 5)
    made.created = 1_767_225_600.5
    assert TextFormatter().format(made) == "2026-01-01T00:00:00.500Z WARNING shop: sequenced 5 events"


def test_a_line_of_json_is_an_object_that_holds_what_was_said() -> None:
    made = record("sequenced %d events", 5, order={"id": 7}, when=Path("x"), color_message="\x1b[1mno")
    made.created = 1_767_225_600.5
    assert json.loads(JsonFormatter().format(made)) == {
        "time": "2026-01-01T00:00:00.500Z",
        "level": "WARNING",
        "logger": "shop",
        "message": "sequenced 5 events",
        "order": {"id": 7},
        "when": "x",
    }


def test_json_gives_back_what_was_escaped() -> None:
    assert json.loads(JsonFormatter().format(record("%s", EVIL)))["message"] == EVIL


def test_a_fault_is_in_json_as_it_is() -> None:
    line = json.loads(JsonFormatter().format(record("failed", exc_info=fault())))
    assert line["exception"].startswith("Traceback (most recent call last):\n")


def test_extras_cannot_take_the_place_of_what_the_record_says() -> None:
    line = json.loads(JsonFormatter().format(record("said", level="forged", time="forged", logger="forged")))
    assert (line["level"], line["logger"], line["message"]) == ("WARNING", "shop", "said")


class Unshowable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


@pytest.mark.parametrize("formatter", FORMATTERS)
@pytest.mark.parametrize(
    "made", [record("%d", "no number"), record("%s", Unshowable()), record("said", extra_of_it=Unshowable())]
)
def test_what_cannot_be_shown_costs_no_line(formatter: logging.Formatter, made: logging.LogRecord) -> None:
    assert formatter.format(made).isprintable()


def test_within_a_span_json_names_the_trace() -> None:
    with TracerProvider().get_tracer("test").start_as_current_span("outer") as span:
        line = json.loads(JsonFormatter().format(record("said")))
    assert line["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    assert line["span_id"] == f"{span.get_span_context().span_id:016x}"
    assert "trace_id" not in json.loads(JsonFormatter().format(record("said")))


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_what_follows_the_path_of_a_request_is_left_out(formatter: logging.Formatter) -> None:
    """Given uvicorn's records of a request and of a WebSocket, then the query, perhaps a ticket, is not in them."""
    access = record('%s - "%s %s HTTP/%s" %d', "::1", "GET", "/ws?ticket=secret", "1.1", 200, name="uvicorn.access")
    accepted = record('%s - "WebSocket %s" [accepted]', "::1", "/ws?ticket=secret", name="uvicorn.error")
    for made in (access, accepted):
        line = formatter.format(made)
        assert "/ws" in line
        assert "secret" not in line


# --- configured ----------------------------------------------------------------------------------


@pytest.fixture
def configured() -> Iterator[Callable[..., None]]:
    """Configure logging; as it was at the end."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in config()["loggers"]}
    yield lambda *how: logging.config.dictConfig(config(*how))
    root.handlers[:], root.level = before
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize(
    "name", ["aiosqlite", "websockets.server", "uvicorn.error", "httpx", "sqlalchemy.engine.Engine"]
)
def test_libraries_do_not_show_what_they_carry_when_the_bus_is_debugged(
    configured: Callable[..., None], name: str
) -> None:
    configured("json", "debug")
    assert not logging.getLogger(name).isEnabledFor(logging.DEBUG)
    assert logging.getLogger("eventbus_fastapi.pipeline.node").isEnabledFor(logging.DEBUG)
    assert logging.getLogger("shop").isEnabledFor(logging.DEBUG)


def test_the_level_is_that_of_all(configured: Callable[..., None]) -> None:
    configured("text", "error")
    for name in ("eventbus_fastapi", "uvicorn", "shop", "aiosqlite"):
        assert not logging.getLogger(name).isEnabledFor(logging.WARNING)


# --- what is never in a log ----------------------------------------------------------------------


def test_an_error_of_the_database_does_not_show_what_its_statement_was_given() -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as connection, pytest.raises(DBAPIError) as refused:
        connection.execute(text("SELECT * FROM nowhere WHERE payload = :payload"), {"payload": "secret"})
    engine.dispose()
    assert "secret" in str(refused.value)
    assert "secret" not in str(translate(refused.value))
    assert "secret" not in str(refused.value)


async def test_no_log_has_the_payload_or_what_a_handler_says_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Given handlers of a worker and a client whose errors quote the payload, one that it does not fit, and all logged,
    then no line of the bus has it, and each says what failed and where.
    """
    caplog.set_level(logging.DEBUG, "eventbus_fastapi")
    bus = bus_on(tmp_path)

    @bus.handler("#", group="failing", max_retries=0)
    async def fail(event: Any) -> None:
        raise ValueError(f"cannot handle {event}")

    @bus.handler("#", group="undecodable")
    async def number(event: int) -> None: ...

    async def consume(message: GroupMessage) -> None:
        raise KeyError(message.payload)

    async with (
        serving(app_of(bus)) as served,
        EventBusClient(served.ws) as client,
        client.consume(consume, "#", group="client"),
    ):
        await bus.workers.start()
        await client.publish("a", "top-secret")
        for sign in ("failing gave up seq 1", "undecodable gave up seq 1", "the handler failed at seq 1, attempt 1"):
            await eventually(partial(is_said, caplog, sign))
    of_bus = [each for each in caplog.records if each.name.startswith("eventbus_fastapi")]
    assert "top-secret" not in "".join(TextFormatter().format(each) for each in of_bus)
    assert f"ValueError at {__file__}:" in caplog.text
    assert " in consume" in caplog.text


def is_said(caplog: pytest.LogCaptureFixture, sign: str) -> bool:
    return sign in caplog.text


# --- the processes -------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_every_line_of_serve_is_json_whatever_clients_send(tmp_path: Path, workers: str) -> None:
    """Given a server that logs JSON and every request, when clients send what they should not, then each line is an
    object still, and no secret is in any.
    """
    env = environment(EVENTBUS_DATABASE_URL=url_in(tmp_path), EVENTBUS_LOG_FORMAT="json", EVENTBUS_LOG_LEVEL="debug")
    command = [*EVENTBUS, "serve", "--port", "0", "--access-log", "--workers", workers]
    async with Process.running(command, cwd=tmp_path, env=env) as process:
        line = json.loads(await process.line('"serving http'))
        url = line["message"].split()[1]
        await process.line("Application startup complete")
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            await http.post("/publish", json={"topic": "a", "payload": "secret"})
            await http.post("/publish?token=secret", content=b'{"topic": "a\n", "payload": "secret"')
            await http.get("/%0AINFO%20forged?token=secret")
        await speak(f"{url.replace('http', 'ws', 1)}/ws?ticket=secret", "secret\n\x00")
        await raw(url, b"GET /\x00secret\r\nINFO: forged\r\n\r\n")
        await process.line("/publish")
        await process.line("WebSocket /ws")
        await process.line("Invalid HTTP request")
        assert process.lines
        for line in process.lines:
            assert json.loads(line).keys() >= {"time", "level", "logger", "message"}
        assert "secret" not in process.output


async def speak(url: str, text: str) -> None:
    """Send a text, and something that is no UTF-8, to a WebSocket."""
    try:
        async with connect(url, proxy=None) as socket:
            await socket.send(text)
            await socket.send(b"\xff\xfe", text=True)
            await socket.recv()
            await socket.recv()
    except WebSocketException:
        pass


async def raw(url: str, request: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    writer.write(request)
    await reader.read()
    writer.close()


WORKER = """\
import logging
from eventbus_fastapi import EventBus

eventbus = EventBus()

@eventbus.handler("#")
async def handle(payload: object) -> None:
    logging.getLogger("shop").warning("first\\nsecond", extra={"order": 7})
"""


async def test_a_worker_logs_json_its_handlers_too_and_is_scraped_on_a_port_of_each_process(tmp_path: Path) -> None:
    """Given a worker of two processes that logs JSON, then its handlers' records are lines as well, and each process
    says where it is scraped.
    """
    (tmp_path / "shop.py").write_text(WORKER)
    env = environment(EVENTBUS_DATABASE_URL=url_in(tmp_path))
    options = ["--log-format", "json", "--processes", "2", "--metrics-port", "0"]
    async with Process.running([*EVENTBUS, "worker", "shop:eventbus", *options], cwd=tmp_path, env=env) as process:
        await eventually(lambda: ports(process.lines), 60)
        async with bus_on(tmp_path) as bus:
            await bus.publish("a", 1)
        line = json.loads(await process.line("second"))
        assert (line["logger"], line["message"], line["order"]) == ("shop", "first\nsecond", 7)
        assert [json.loads(line) for line in process.lines]
        async with httpx.AsyncClient(trust_env=False) as http:
            answers = [(await http.get(f"http://127.0.0.1:{port}/metrics")).text for port in ports(process.lines)]
    handled = 'eventbus_outcomes_total{outcome="acked",queue="default"}'
    assert len(answers) == 2
    assert all(handled in answer for answer in answers)


def ports(lines: list[str]) -> tuple[str, str]:
    first, second = (line.partition(" port ")[2].split('"')[0] for line in lines if "serving metrics on" in line)
    return first, second
