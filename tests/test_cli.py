"""The command `eventbus`."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import pytest
from fastapi import Depends, FastAPI
from hypothesis import given
from hypothesis import strategies as st

from eventbus_fastapi import EventBus, EventBusClient, Message
from eventbus_fastapi.cli import main, visible
from eventbus_fastapi.version import VERSION
from tests.processes import EVENTBUS, Process, environment
from tests.server.asking import app_of, bus_on
from tests.serving import serving

ID = "0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3"


class Done(NamedTuple):
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what went wrong."""
        assert self.out == ""
        assert self.err.count("\n") == 1
        assert self.err.startswith("error: ")
        assert "Traceback" not in self.err
        return self.err.rstrip("\n")


Command = Callable[..., Done]


@pytest.fixture
def eventbus(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command line in this process: `eventbus("publish", "a", "1")`."""

    def run(*arguments: str, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(arguments)
        return Done(int(end.value.code or 0), *capsys.readouterr())

    return run


class Server(NamedTuple):
    bus: EventBus
    url: str

    async def log(self) -> list[Message]:
        return (await self.bus.node.history(["#"], 0, 1_000)).messages


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    bus = bus_on(tmp_path)
    async with serving(app_of(bus)) as served:
        yield Server(bus, served.http)


def url_in(directory: Path) -> str:
    return f"sqlite+aiosqlite:///{directory}/eventbus.db"


# --- all commands --------------------------------------------------------------------------------


def test_it_tells_its_version(eventbus: Command) -> None:
    assert eventbus("--version") == Done(0, f"eventbus {VERSION}\n", "")


def test_it_lists_its_commands(eventbus: Command) -> None:
    done = eventbus("--help")

    assert done.code == 0
    for command in ("serve", "publish", "tail", "migrate"):
        assert re.search(rf"\b{command}\b", done.out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["Missing command", "eventbus --help"]),
        (["nope"], ["nope"]),
        (["migrate"], ["Missing command", "eventbus migrate --help"]),
        (["publish", "a"], ["payload", "eventbus publish --help"]),
        (["publish", "a", "1", "--ttl", "soon"], ["--ttl"]),
        (["publish", "a", "1", "--json", "--text"], ["--json or --text"]),
        (["publish", "a", "1", "--url", "ftp://127.0.0.1"], ["--url", "http(s)://", "'ftp://127.0.0.1'"]),
        (["publish", "a", "1", "--url", "x\n"], [r"'x\n'"]),
        (["publish", "a", "1", "--url", ""], ["--url", "''"]),
        (["publish", "a", "1", "--url", "http://[::1"], ["--url", "'http://[::1'"]),
        (["publish", "a", "1", "--url", "http://:3000"], ["--url", "'http://:3000'"]),
        (["tail", "a", "--url", "ws://127.0.0.1:99999/ws"], ["--url", "'ws://127.0.0.1:99999/ws'"]),
        (["tail", "a", "--url", "http://127.0.0.1:3000/#all"], ["--url", "no fragment", "/#all'"]),
        (["tail", "a", "--url", "ws://127.0.0.1:3000/ws#all"], ["--url", "no fragment", "/ws#all'"]),
        (
            ["publish", "a", "1", "--url", "http://h", "--database-url", "sqlite+aiosqlite://"],
            ["--url or --database-url"],
        ),
        (["migrate", "upgrade", "--sqll"], ["--sqll", "eventbus migrate upgrade --help"]),
        (["tail", "a", "--from", "yesterday"], ["--from", "'yesterday'"]),
        (["tail", "a", "--from", "9" * 5_000], ["--from", "'999"]),
        (["tail", "a", "--from", "0001-01-01"], ["--from", "'0001-01-01'"]),
        (["tail", "a", "--count", "0"], ["--count"]),
        (["serve", "--log-level", "loud"], ["--log-level", "loud"]),
        (["serve", "--port", "70000"], ["--port"]),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(eventbus: Command, arguments: list[str], words: list[str]) -> None:
    done = eventbus(*arguments)

    assert done.code == 2
    for word in words:
        assert word in done.error


@pytest.mark.parametrize("command", [("publish", "a", "1"), ("tail", "a")])
def test_a_bus_that_is_not_there_is_one_line_and_exit_code_1(eventbus: Command, command: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    done = eventbus(*command, "--url", f"http://127.0.0.1:{port}")

    assert done.code == 1
    assert f"127.0.0.1:{port}" in done.error


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".org"])
def test_a_host_that_cannot_be_one_is_one_line_and_exit_code_1(eventbus: Command, host: str) -> None:
    done = eventbus("publish", "a", "1", "--url", f"http://{host}")

    assert (done.code, host[:60] in done.error) == (1, True)


@pytest.mark.parametrize("command", [["serve"], ["publish", "a", "1"], ["tail", "a"], ["migrate", "current"]])
def test_a_setting_that_is_misspelt_is_one_line(
    eventbus: Command, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("EVENTBUS_DATABASE_URI", "x")

    done = eventbus(*command)

    assert done == Done(1, "", "error: unknown setting EVENTBUS_DATABASE_URI; did you mean EVENTBUS_DATABASE_URL?\n")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("publish a 1 >&-", "error: stdout is closed"),
        ("tail a >&-", "error: stdout is closed"),
        ("publish a - <&-", "error: stdin is closed"),
        ("publish a 1 >/dev/full", "error: cannot write to stdout: No space left on device"),
        ("tail a --from earliest >/dev/full", "error: cannot write to stdout: No space left on device"),
    ],
)
async def test_a_stream_that_is_closed_or_full_is_one_line_and_exit_code_1(
    server: Server, tmp_path: Path, command: str, error: str
) -> None:
    await server.bus.publish("a", "before")
    words, _, redirection = command.rpartition(" ")
    shell = f"{shlex.join([*EVENTBUS, *words.split(), '--url', server.url])} {redirection}"

    async with Process.running(["sh", "-c", shell], cwd=tmp_path) as process:
        assert await process.end() == 1

    assert process.output == error + "\n"


async def test_an_event_is_not_published_when_its_receipt_cannot_be_shown(server: Server, tmp_path: Path) -> None:
    shell = f"{shlex.join([*EVENTBUS, 'publish', 'a', '1', '--url', server.url])} >&- 2>&-"

    async with Process.running(["sh", "-c", shell], cwd=tmp_path) as process:
        assert await process.end() == 1

    assert await server.log() == []


async def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    script = "import sys; sys.modules['typer'] = None; import eventbus_fastapi.cli"

    async with Process.running([sys.executable, "-c", script], cwd=tmp_path) as process:
        assert await process.end() == 1

    assert process.output == "error: typer is not installed; the command needs: pip install 'eventbus-fastapi[cli]'\n"


@given(st.text())
def test_what_is_shown_has_nothing_that_a_terminal_obeys(text: str) -> None:
    assert visible(text).isprintable()


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S", "Zs"])))
def test_what_is_harmless_is_shown_as_it_is(text: str) -> None:
    assert visible(text) == text


# --- publish -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "stdin", "payload", "content_type"),
    [
        (["Hello"], b"", "Hello", "text/plain"),
        (['{"id": 1}'], b"", {"id": 1}, "application/json"),
        (["42"], b"", 42, "application/json"),
        (["null"], b"", None, "application/json"),
        (['"Hello"'], b"", "Hello", "application/json"),
        (["42", "--text"], b"", "42", "text/plain"),
        (["42", "--json"], b"", 42, "application/json"),
        (["NaN"], b"", "NaN", "text/plain"),
        ([""], b"", "", "text/plain"),
        (["é ☃"], b"", "é ☃", "text/plain"),
        (["-"], b'[1, "\xc3\xa9"]\n', [1, "é"], "application/json"),
        (["-"], b"two\nlines\n", "two\nlines\n", "text/plain"),
        (["--", "-5"], b"", -5, "application/json"),
    ],
)
async def test_a_payload_that_parses_as_json_is_json_else_text(
    eventbus: Command, server: Server, arguments: list[str], stdin: bytes, payload: object, content_type: str
) -> None:
    done = await asyncio.to_thread(eventbus, "publish", "--url", server.url, "a", *arguments, stdin=stdin)

    assert done.code == 0, done.err
    [message] = await server.log()
    assert (message.payload, message.content_type) == (payload, content_type)
    assert done == Done(0, f"seq=1 message_id={message.message_id}\n", "")


async def test_an_event_is_published_with_everything_that_it_carries(eventbus: Command, server: Server) -> None:
    command = ["publish", "a.b", "1", "--key", "k", "--message-id", ID, "--ttl", "60", "--url", server.url]

    first = await asyncio.to_thread(eventbus, *command)
    again = await asyncio.to_thread(eventbus, *command)

    assert first.out == f"seq=1 message_id={ID}\n"
    assert again.out == f"seq=1 message_id={ID} duplicate=true\n"
    [message] = await server.log()
    assert (message.topic, message.key, message.message_id) == ("a.b", "k", UUID(ID))
    assert message.expires_at == message.created_at + 60_000_000


async def test_the_url_may_be_that_of_the_websocket(eventbus: Command, server: Server) -> None:
    url = server.url.replace("http", "ws") + "/ws"

    assert (await asyncio.to_thread(eventbus, "publish", "a", "1", "--url", url)).code == 0


async def test_the_query_of_the_url_goes_along(eventbus: Command, tmp_path: Path) -> None:
    app, tokens = FastAPI(), list[str]()

    def guard(token: str) -> None:
        tokens.append(token)

    app.include_router(bus_on(tmp_path).router(), dependencies=[Depends(guard)])
    async with serving(app) as served:
        for url in (f"{served.http}/?token=1", f"{served.ws}?token=2"):
            assert (await asyncio.to_thread(eventbus, "publish", "a", "1", "--url", url)).code == 0
    assert tokens == ["1", "2"]


async def test_an_event_goes_straight_into_a_database(eventbus: Command, tmp_path: Path) -> None:
    done = await asyncio.to_thread(eventbus, "publish", "a", "Hello", "--database-url", url_in(tmp_path))

    async with bus_on(tmp_path) as bus:
        message = (await bus.get(1)).message
    assert done == Done(0, f"seq=1 message_id={message.message_id}\n", "")
    assert message.payload == "Hello"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a..b", "1"], ["invalid topic 'a..b'"]),
        (["a\x1b[31m", "1"], [r"a\x1b[31m"]),
        (["a", "{", "--json"], ["not JSON"]),
        (["a", "1", "--message-id", "1"], ["message_id", "UUID"]),
        (["a", "1", "--ttl", "-1"], ["ttl"]),
        (["a", "1", "--key", ""], ["key"]),
    ],
)
async def test_an_event_that_cannot_be_published_is_one_line_and_exit_code_1(
    eventbus: Command, server: Server, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    remote = await asyncio.to_thread(eventbus, "publish", *arguments, "--url", server.url)
    local = await asyncio.to_thread(eventbus, "publish", *arguments, "--database-url", url_in(tmp_path))

    for done in (remote, local):
        assert done.code == 1
        for word in words:
            assert word in done.error
    assert await server.log() == []


async def test_text_that_is_not_utf_8_is_refused(eventbus: Command, server: Server) -> None:
    done = await asyncio.to_thread(eventbus, "publish", "a", "-", "--url", server.url, stdin=b"\xff")

    assert done.code == 1
    assert "UTF-8" in done.error


# --- tail ----------------------------------------------------------------------------------------


async def test_each_event_is_one_line_with_seq_time_topic_and_payload(eventbus: Command, server: Server) -> None:
    await server.bus.publish_many([("chat.user1", "Hello"), ("user.created", {"id": 1}), ("image", b"\x00\x01")])

    done = await asyncio.to_thread(eventbus, "tail", "#", "--from", "0", "-n", "3", "--url", server.url)

    lines = done.out.splitlines()
    assert (done.code, done.err) == (0, "")
    assert [re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", "TIME", line) for line in lines] == [
        "1  TIME  chat.user1  Hello",
        '2  TIME  user.created  {"id":1}',
        "3  TIME  image  <2 bytes of application/octet-stream>",
    ]


async def test_acknowledged_events_are_shown_too(eventbus: Command, server: Server) -> None:
    await server.bus.publish_many([("a", "acknowledged"), ("a", "new")])
    url = server.url.replace("http", "ws") + "/ws"
    async with EventBusClient(url) as client, client.subscribe("a", start="earliest") as messages:
        await (await anext(messages)).ack()

    done = await asyncio.to_thread(eventbus, "tail", "a", "--from", "earliest", "-n", "2", "--url", server.url)

    assert [line.split()[-1] for line in done.out.splitlines()] == ["acknowledged", "new"]


async def test_each_event_is_one_line_of_json(eventbus: Command, server: Server) -> None:
    payload = "two\nlines \x1b[31m \x7f \x9b \u2028 \u202e ☃"
    receipt = await server.bus.publish("a", payload, key="k")

    done = await asyncio.to_thread(
        eventbus, "tail", "a", "--from", "earliest", "-n", "1", "--json", "--url", server.url
    )

    [line] = done.out.splitlines()
    assert line.isprintable()
    event = json.loads(line)
    assert (event["seq"], event["message_id"], event["key"]) == (1, str(receipt.message_id), "k")
    assert event["payload"] == payload


async def test_what_strangers_wrote_is_neither_obeyed_nor_read_as_markup(eventbus: Command, server: Server) -> None:
    await server.bus.publish("a", "[bold]x[/bold] :smile: \x1b]0;title\x07 \x9b31m \r\n 7  forged  line \u202eabc")

    done = await asyncio.to_thread(eventbus, "tail", "#", "--from", "0", "-n", "1", "--url", server.url)

    [line] = done.out.splitlines()
    assert line.isprintable()
    assert r"[bold]x[/bold] :smile: \x1b]0;title\x07 \x9b31m \r\n 7  forged  line \u202eabc" in line


async def test_a_terminal_gets_colours_for_the_columns_and_the_payload_as_it_is(
    eventbus: Command, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    payload = "[bold]x[/bold] :smile: \x1b[31m http://example.org " + "y" * 300
    await server.bus.publish("chat.user1", payload)

    done = await asyncio.to_thread(eventbus, "tail", "#", "--from", "0", "-n", "1", "--url", server.url)

    [line] = done.out.splitlines()
    assert line.startswith("\x1b[1m1\x1b[0m  \x1b[2m")
    assert line.endswith("  \x1b[36mchat.user1\x1b[0m  " + visible(payload))


async def test_it_starts_after_a_seq_or_at_a_time_and_shows_what_matches(eventbus: Command, server: Server) -> None:
    await server.bus.publish_many([("a.x", 1), ("b.x", 2), ("a.y", 3)])

    async def shown(*arguments: str) -> list[str]:
        done = await asyncio.to_thread(eventbus, "tail", *arguments, "--url", server.url)
        return [line.split()[0] for line in done.out.splitlines()]

    assert await shown("a.*", "--from", "0", "-n", "2") == ["1", "3"]
    assert await shown("#", "--from", "1", "-n", "2") == ["2", "3"]
    assert await shown("#", "--from", "2020-01-01T00:00:00Z", "-n", "1") == ["1"]
    assert await shown("#", "--from", "2020-01-01", "-n", "1") == ["1"]


async def test_a_gap_is_told_and_the_rest_is_shown(eventbus: Command, server: Server) -> None:
    await server.bus.publish_many([("a", number) for number in range(5)])
    await server.bus.node.store.trim(before=None, keep=2)

    done = await asyncio.to_thread(eventbus, "tail", "#", "--from", "0", "-n", "2", "--url", server.url)

    assert [line.split()[0] for line in done.out.splitlines()] == ["4", "5"]
    assert done.err == "warning: events 1 to 3 are not available (retention)\n"


@pytest.mark.parametrize("pattern", ["a..b", "a*"])
async def test_a_bad_pattern_is_one_line(eventbus: Command, server: Server, pattern: str) -> None:
    done = await asyncio.to_thread(eventbus, "tail", pattern, "--url", server.url)

    assert done.code == 1
    assert f"invalid pattern '{pattern}'" in done.error


# --- migrate -------------------------------------------------------------------------------------


def test_the_tables_are_created_checked_and_removed(eventbus: Command, database_url: str) -> None:
    def migrate(*arguments: str) -> Done:
        return eventbus("migrate", *arguments, "--database-url", database_url)

    assert migrate("current") == Done(0, "base (no tables)\n", "")
    outdated = migrate("check")
    assert (outdated.code, "eventbus migrate upgrade" in outdated.error) == (1, True)

    head = migrate("upgrade").out
    assert migrate("upgrade") == migrate("current") == Done(0, head, "")
    assert migrate("check") == Done(0, f"the tables are at revision {head.strip()}, as needed\n", "")
    assert eventbus("publish", "a", "1", "--database-url", database_url).code == 0

    assert migrate("downgrade", "base") == Done(0, "base (no tables)\n", "")


@pytest.mark.databases("sqlite")
def test_a_relative_revision_is_taken_as_the_page_has_it(eventbus: Command, database_url: str) -> None:
    def migrate(*arguments: str) -> Done:
        return eventbus("migrate", *arguments, "--database-url", database_url)

    assert migrate("upgrade", "+1") == Done(0, "0001\n", "")
    assert (migrate("upgrade", "+1").code, migrate("current").out) == (1, "0001\n")
    assert migrate("downgrade", "-1") == Done(0, "base (no tables)\n", "")
    assert (migrate("downgrade", "-1").code, migrate("current").out) == (1, "base (no tables)\n")


def test_looking_at_a_sqlite_file_that_is_not_there_does_not_make_it(eventbus: Command, tmp_path: Path) -> None:
    current = eventbus("migrate", "current", "--database-url", url_in(tmp_path))
    check = eventbus("migrate", "check", "--database-url", url_in(tmp_path))

    assert current == Done(0, "base (no tables)\n", "")
    assert (check.code, "eventbus migrate upgrade" in check.error) == (1, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dialect", ["sqlite+aiosqlite", "postgresql+asyncpg", "mysql+asyncmy"])
def test_the_sql_is_printed_without_a_database(eventbus: Command, dialect: str) -> None:
    database_url = f"{dialect}://nobody@127.0.0.1:1/nothing" if "sqlite" not in dialect else f"{dialect}://"

    up = eventbus("migrate", "upgrade", "--sql", "--database-url", database_url)
    down = eventbus("migrate", "downgrade", "base", "--sql", "--database-url", database_url)

    assert (up.code, up.err, down.code, down.err) == (0, "", 0, "")
    assert "CREATE TABLE bus_event" in up.out
    assert re.search("DROP TABLE (IF EXISTS )?bus_event", down.out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["upgrade", "nope", "--database-url", "sqlite+aiosqlite://"], ["revision", "'nope'", "+1"]),
        (["upgrade", "-1", "--database-url", "sqlite+aiosqlite://"], ["revision", "'-1'", "+1"]),
        (["downgrade", "+1", "--database-url", "sqlite+aiosqlite://"], ["revision", "'+1'", "-1"]),
        (["upgrade", "-1", "--sql", "--database-url", "sqlite+aiosqlite://"], ["no revision -1 from base"]),
        (["upgrade", "--sql", "--database-url", "nope"], ["database URL cannot be read"]),
        (["upgrade", "--sql", "--database-url", "nope://"], ["'nope'", "sqlite, postgresql"]),
        (["upgrade", "--database-url", "nope://"], ["async driver", "nope"]),
        (
            ["upgrade", "--database-url", "postgresql+asyncpg://app:top@secret:5x@h/app"],
            ["database URL cannot be read"],
        ),
        (["check", "--database-url", "postgresql+asyncpg://nobody:secret@127.0.0.1:1/x"], ["not available"]),
    ],
)
def test_what_cannot_be_migrated_is_one_line(eventbus: Command, arguments: list[str], words: list[str]) -> None:
    done = eventbus("migrate", *arguments)

    assert done.code == 1
    assert "secret" not in done.error
    for word in words:
        assert word in done.error


# --- serve ---------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_one_line(eventbus: Command, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        done = eventbus("serve", "--port", str(port), "--database-url", url_in(tmp_path))

    assert done.code == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in done.error


@pytest.mark.databases("postgresql", "mysql")
def test_a_database_without_tables_is_one_line_with_the_command_to_run(eventbus: Command, database_url: str) -> None:
    done = eventbus("serve", "--port", "0", "--database-url", database_url)

    assert done.code == 1
    assert "eventbus migrate upgrade" in done.error


def test_a_database_in_memory_serves_one_worker_only(eventbus: Command) -> None:
    done = eventbus("serve", "--workers", "2", "--database-url", "sqlite+aiosqlite://")

    assert done.code == 1
    assert "--workers 1" in done.error


@contextlib.asynccontextmanager
async def served(directory: Path, *arguments: str) -> AsyncIterator[tuple[Process, str]]:
    """Run `eventbus serve` on a free port; give the process and its URL."""
    env = environment(EVENTBUS_DATABASE_URL=url_in(directory))
    async with Process.running([*EVENTBUS, "serve", "--port", "0", *arguments], cwd=directory, env=env) as process:
        line = await process.line(" serves http://")
        await process.line("/docs")
        yield process, line.split()[3]


def suggested(process: Process, word: str) -> str:
    """Return the command with this word that the server told to try next."""
    [line] = [line.strip() for line in process.lines if line.startswith("  ") and word in line]
    return line


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_what_serve_tells_to_try_next_works_as_it_stands(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, url):
        async with Process.running(["sh", "-c", f"exec {suggested(server, 'tail')}"], cwd=tmp_path) as tail:
            await server.line("connection open")
            for number, command in enumerate((suggested(server, "curl"), suggested(server, "publish chat"))):
                async with Process.running(["sh", "-c", command], cwd=tmp_path) as publisher:
                    assert await publisher.end() == 0, publisher.output
                assert "seq" in publisher.output, number
            await tail.line("2  ")
            shown = [line.split("  ")[2:] for line in tail.lines]
            assert await tail.interrupt(signal.SIGINT) == 130

        assert shown[-1] == ["chat.user1", "Hello"]
        assert "Traceback" not in tail.output
        assert f"{url}/docs" in server.output
        assert await server.interrupt(signal.SIGTERM) == 0
    assert "Traceback" not in server.output


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_server_with_an_open_socket_ends_in_time(tmp_path: Path, workers: str, number: signal.Signals) -> None:
    async with (
        served(tmp_path, "--workers", workers) as (server, url),
        Process.running([*EVENTBUS, "tail", "#", "--url", url], cwd=tmp_path),
    ):
        await server.line("connection open")

        assert await server.interrupt(number) == 0

    assert "Traceback" not in server.output


async def test_a_tail_ends_quietly_when_its_reader_does(tmp_path: Path) -> None:
    async with bus_on(tmp_path) as bus, serving(app_of(bus)) as at:
        await bus.publish_many([("a", "x" * 1_000)] * 1_000)
        tail = shlex.join([*EVENTBUS, "tail", "#", "--from", "0", "--url", at.http])
        pipe = f"{{ {tail}; echo ended with $? >&2; }} | head -n 1"

        async with Process.running(["sh", "-c", pipe], cwd=tmp_path) as process:
            assert await process.end() == 0

    assert len(process.lines) == 2
    assert process.lines[0].startswith("1  ")
    assert process.lines[1] == "ended with 0"


async def test_a_tail_goes_on_when_the_server_comes_back(tmp_path: Path) -> None:
    bus = bus_on(tmp_path)
    async with contextlib.AsyncExitStack() as stack:
        async with serving(app_of(bus)) as first:
            command = [*EVENTBUS, "tail", "#", "--from", "0", "--url", first.http]
            await bus.publish("a", "before")
            tail = await stack.enter_async_context(Process.running(command, cwd=tmp_path))
            await tail.line("before")

        async with serving(app_of(bus), port=first.port):
            await bus.publish("a", "after")
            await tail.line("after")

    assert "Traceback" not in tail.output
