"""README and docs: what they show runs, and what they say of settings, extras and files is so."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import os
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic import command
from alembic.config import Config
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from websockets.asyncio.client import connect

from eventbus_fastapi import EventBus, EventBusClient, Settings
from eventbus_fastapi.settings import PREFIX
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.group import Death, Ending, Settlement
from eventbus_fastapi.store.schema import Tables
from tests import documents
from tests.documents import README
from tests.examples.running import free_port
from tests.processes import CHECKOUT, EVENTBUS, Process, environment
from tests.serving import serving
from tests.waiting import eventually

DOCS = CHECKOUT / "docs"
DELIVERY = DOCS / "delivery.md"
GROUPS = DOCS / "groups.md"
GROWING = DOCS / "growing.md"
MIGRATIONS = DOCS / "migrations.md"
RECURRING = DOCS / "recurring.md"
WORKERS = DOCS / "workers.md"
PAGES = [
    *CHECKOUT.glob("*.md"),
    *DOCS.glob("*.md"),
    *CHECKOUT.glob("*/README.md"),
    *CHECKOUT.glob("examples/*/README.md"),
]
URL = "postgresql+asyncpg://app@db/app"
"""Where the pages have their database."""
ADDRESS = "127.0.0.1:3000"
"""Where the README has the bus."""
ALICE = {"id": 1, "username": "alice"}
BOB = {"id": 2, "username": "bob"}


# --- the README's programs -----------------------------------------------------------------------


async def test_the_app_and_the_consumer_of_the_readme_work_together(tmp_path: Path) -> None:
    """Given both as they are shown, when users are created, then the consumer prints each of them once."""
    address = f"127.0.0.1:{free_port()}"
    for name in ("app.py", "consumer.py"):
        (tmp_path / name).write_text(documents.titled(README, name).replace(ADDRESS, address))
    consumer = [sys.executable, "consumer.py"]
    async with app(tmp_path, address), httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as http:
        assert (await http.post("/users", json=ALICE)).status_code == 201
        async with Process.running(consumer, cwd=tmp_path) as process:
            await process.line(f"1 user.created {ALICE}")
            await eventually(lambda: is_processed(http, 1))
        assert (await http.post("/users", json=BOB)).status_code == 201
        async with Process.running(consumer, cwd=tmp_path) as process:
            await process.line("user.created")
            assert process.lines == [f"2 user.created {BOB}"]


async def test_the_worker_of_the_readme_handles_what_its_app_publishes(tmp_path: Path) -> None:
    """Given the worker and the app as they are shown, when a user is created, then the worker handles it."""
    address = f"127.0.0.1:{free_port()}"
    for name in ("app.py", "worker.py"):
        (tmp_path / name).write_text(documents.titled(README, name).replace(ADDRESS, address))
    async with (
        app(tmp_path, address),
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as http,
        Process.running([sys.executable, "-u", "worker.py"], cwd=tmp_path) as process,
    ):
        await eventually(lambda: has_group(http, "worker.send_welcome"))
        assert (await http.post("/users", json=ALICE)).status_code == 201
        await process.line("welcome, alice")


async def has_group(http: httpx.AsyncClient, name: str) -> bool:
    return (await http.get(f"/groups/{name}")).is_success


@contextlib.asynccontextmanager
async def app(directory: Path, address: str) -> AsyncIterator[Process]:
    """Serve app.py as the README says."""
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", address.partition(":")[2]]
    async with Process.running(command, cwd=directory) as process:
        await process.line(f"running on http://{address}")
        yield process


async def is_processed(http: httpx.AsyncClient, seq: int) -> bool:
    event = (await http.get(f"/events/{seq}")).json()
    return bool(event["status"] == "processed")


async def test_the_tour_of_the_readme_prints_what_it_shows(tmp_path: Path) -> None:
    """Given the bus alone, when the commands are typed one after the other, then each prints what stands below it."""
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    address = f"127.0.0.1:{free_port()}"
    serve = [*EVENTBUS, "serve", "--port", address.partition(":")[2]]
    tour = [block for block in documents.blocks(README) if "-m websockets" in block.text or "curl" in block.text]
    async with Process.running(serve, cwd=tmp_path) as server:
        await server.line(f"serves http://{address}")
        for dialogue in [dialogue for block in tour for dialogue in documents.dialogues(block)]:
            if "-m websockets" in dialogue.command:
                await talk(f"ws://{address}/ws", dialogue.output)
            else:
                assert masked(await shell(dialogue.command, address, tmp_path)) == masked(dialogue.output)


async def talk(url: str, conversation: str) -> None:
    """Send the lines that begin with > and expect those that begin with <."""
    async with connect(url) as socket, asyncio.timeout(30):
        for line in conversation.splitlines():
            if line.startswith("> "):
                await socket.send(line[2:])
            else:
                assert masked(f"< {await socket.recv()!s}") == masked(line)


async def shell(command: str, address: str, directory: Path) -> str:
    """Run a command of the README against the bus at an address, and return what it prints."""
    words = shlex.split(command.replace(ADDRESS, address))
    if words[0] == "curl":
        words[1:1] = ["--silent", "--show-error", "--noproxy", "*"]
    elif words[0] == ".venv/bin/eventbus":
        words = [*EVENTBUS, *words[1:], "--url", f"http://{address}"]
    process = await asyncio.create_subprocess_exec(
        *words, cwd=directory, env=environment(), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return out.decode().strip()


def masked(printed: str) -> str:
    """Replace what differs each time."""
    printed = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<uuid>", printed)
    printed = re.sub(r'"timestamp":\d+', '"timestamp":<time>', printed)
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?[+-]\d\d:\d\d", "<time>", printed)


# --- the docs' fragments -------------------------------------------------------------------------


async def test_the_code_of_delivery_md_does_what_it_says(database_url: str) -> None:
    """Given a bus and a client of it, when the fragments run one after the other, then none of their asserts fails."""
    await prepare(database_url)
    eventbus = EventBus(database_url)
    namespace: dict[str, Any] = {"eventbus": eventbus, "async_sessionmaker": async_sessionmaker, "text": text}
    async with (
        serving(served(eventbus)) as server,
        EventBusClient(server.ws) as client,
        AsyncSession(eventbus.engine) as session,
    ):
        namespace |= {"client": client, "session": session}
        for block in documents.python_blocks(DELIVERY):
            await documents.run(block, namespace)
        await eventbus.publish("the.end", None)  # whatever was committed before it is before it in the log
        topics = [topic for topic, *_ in await log(eventbus)]
    assert topics == ["order.placed", "payment.requested", "invoice.due", "the.end"]


async def test_the_code_of_workers_md_handles_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the handlers as they are shown, when an event of each is published, then no group has more to do."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "shown"}
    for block in documents.python_blocks(WORKERS):
        await documents.run(block, namespace)
    eventbus: EventBus = namespace["eventbus"]
    async with eventbus:
        await eventbus.publish("user.created", ALICE)
        await eventbus.publish("report.requested", {"kind": "unknown", "state": "new"})
        groups = eventbus.node.store.groups

        async def has_settled(name: str) -> bool:
            figures = await groups.figures(await groups.get(name))
            return (figures.lag, figures.in_flight, figures.retries, figures.dead) == (0, 0, 0, 0)

        for name in ("shown.send_welcome", "shown.make_report", "ledger"):
            await eventually(partial(has_settled, name))


@pytest.mark.databases("postgresql")
async def test_the_code_of_growing_md_publishes_from_another_engine_and_copies_a_log(
    database_url: str, new_database: Callable[[str], str]
) -> None:
    """Given a log on SQLite, when it is copied, then the log on PostgreSQL has the same events at the same seqs."""
    old_url, new_url = new_database("sqlite"), new_database("postgresql")
    async with EventBus(old_url) as old:
        await old.publish("order.placed", {"order": 1}, key="1", metadata={"by": "alice"})
        await old.publish_many([("a.text", "text"), ("some.bytes", b"\x00\xff")])
        history = await log(old)
    await prepare(database_url)
    await prepare(new_url)
    fragments = documents.python_blocks(GROWING)
    namespace: dict[str, Any] = {"AsyncSession": AsyncSession, "create_async_engine": create_async_engine}
    namespace |= {"EventBus": EventBus, "url": database_url, "old_url": old_url, "new_url": new_url}
    async with EventBus(database_url) as eventbus, eventbus.subscribe("#") as messages:
        namespace["eventbus"] = eventbus
        for block in fragments:
            await documents.run(block, namespace)
        assert (await anext(messages)).payload == {"order": 1}
        await namespace["engine"].dispose()
    async with EventBus(new_url) as new:
        assert await log(new) == history


async def test_the_code_of_groups_md_does_what_it_says(database_url: str) -> None:
    """Given a group with dead letters, when the fragments run, then those that were meant are retried or gone."""
    await prepare(database_url)
    eventbus = EventBus(database_url)
    async with serving(served(eventbus)) as server:
        await kill_some(eventbus)
        await eventbus.publish("order.placed", {"order": 1})
        namespace: dict[str, Any] = {"eventbus": eventbus, "print": lambda *_: None, "url": server.ws}
        for block in documents.python_blocks(GROUPS):
            await documents.run(block, namespace)
        assert [item.seq for item in await eventbus.groups.retries("shop.send_welcome")] == [1, 2]
        assert (await eventbus.groups.dead_letters()).entries == []
        billing = (await eventbus.groups.group("billing")).group
        assert (billing.is_paused, billing.cursor, billing.ordered_by) == (False, 0, "key")


async def test_the_commands_of_groups_md_print_what_it_shows(database_url: str, tmp_path: Path) -> None:
    """Given a bus that runs, when the commands are typed one after the other, then each prints what stands below it."""
    await prepare(database_url)
    (console,) = [block for block in documents.blocks(GROUPS) if block.language == "console"]
    variables = {**environment(), "EVENTBUS_DATABASE_URL": database_url}
    async with EventBus(database_url) as eventbus:
        await kill_some(eventbus)
        for dialogue in documents.dialogues(console):
            process = await asyncio.create_subprocess_exec(
                *EVENTBUS, *shlex.split(dialogue.command)[1:], env=variables, stdout=asyncio.subprocess.PIPE
            )
            out, _ = await asyncio.wait_for(process.communicate(), 60)
            assert masked(out.decode().strip()) == masked(dialogue.output)


@pytest.mark.parametrize(
    ("page", "prefixes"),
    [(GROUPS, ("/groups", "/rate-limits", "/dead-letters", "/archive")), (RECURRING, ("/recurring",))],
)
def test_the_requests_of_a_page_are_those_of_the_router(page: Path, prefixes: tuple[str, ...]) -> None:
    paths = served(EventBus("sqlite+aiosqlite://")).openapi()["paths"]
    expected = {
        f"{method.upper()} {path}" for path, methods in paths.items() for method in methods if path.startswith(prefixes)
    }
    assert {row.split("`")[1] for row in documents.rows(page, "| request | does |")} == expected


async def test_the_code_of_recurring_md_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the program as it is shown, when its event is run, then its handler is called; what is made is deleted."""
    monkeypatch.chdir(tmp_path)
    printed: list[str] = []
    namespace: dict[str, Any] = {"__name__": "shown", "print": lambda *words: printed.append(str(words[0]))}
    for block in documents.python_blocks(RECURRING):
        await documents.run(block, namespace)
    eventbus: EventBus = namespace["eventbus"]
    assert sorted(printed) == ["nightly-report", "ping"]
    async with eventbus:
        assert [event.name for event in await eventbus.recurring.all()] == ["nightly-report"]
        await eventbus.recurring.run("nightly-report")
        await eventually(lambda: printed[-1].startswith("sales report of 20"))


async def kill_some(eventbus: EventBus) -> None:
    """Have three events die in the group of the page, which keeps that."""
    await eventbus.publish_many([("user.created", {"id": number}) for number in range(1, 4)])
    store, groups = eventbus.node.store, eventbus.node.store.groups
    group = await groups.ensure("shop.send_welcome", ["user.created"], after=0)
    messages = (await store.read(0, 3)).messages
    claim = await groups.claim(group, messages, up_to=3, owner="one", lease=60)
    assert claim is not None
    refused = {"type": "httpx.ConnectError", "message": "refused"}
    wrong = {"type": "ValueError", "message": "no address"}
    dead = [Death(1, 3, [refused] * 3), Death(2, 3, [refused] * 3), Death(3, 1, [wrong])]
    endings = [
        Ending(message, "dead", death.attempt, 250_000, "web-1", death.errors)
        for message, death in zip(messages, dead, strict=True)
    ]
    await groups.settle([Settlement(group.id, claim.token, dead=dead, pending=(), endings=endings)])


def served(eventbus: EventBus) -> FastAPI:
    app = FastAPI()
    app.include_router(eventbus.router())
    return app


async def prepare(database_url: str) -> None:
    """Make the tables of the bus."""
    settings = Settings(database_url=database_url)
    await migrations.run(settings, Tables(settings.table_prefix, settings.db_schema), migrations.upgrade)


async def log(eventbus: EventBus) -> list[tuple[Any, ...]]:
    """Return what the log holds, without what depends on the clock."""
    page = await eventbus.node.history(["#"], 0, 1_000)
    return [
        (event.topic, event.seq, event.message_id, event.key, event.body, event.content_type, event.metadata)
        for event in page.messages
    ]


# --- the docs' commands --------------------------------------------------------------------------


@pytest.mark.timeout(180)  # a dozen processes
@pytest.mark.databases("postgresql")
async def test_the_commands_of_migrations_md_run_one_after_the_other(database_url: str, tmp_path: Path) -> None:
    """Given an empty database, when the page's commands are typed, then they make the tables, and files of SQL."""
    command.init(Config(tmp_path / "alembic.ini", stdout=io.StringIO()), str(tmp_path / "migrations"))
    first, sql, revision, outbox = documents.consoles(MIGRATIONS)
    assert await script([*first, *sql, *revision], database_url, tmp_path) >= ["0003", "0003"]
    assert await script(outbox, database_url, tmp_path) == ["0001", "the tables are at revision 0001, as needed"]
    assert "CREATE TABLE bus_event" in (tmp_path / "bus.sql").read_text()
    assert "DROP TABLE bus_event" in (tmp_path / "drop.sql").read_text()
    assert any(name.endswith("_add_the_event_bus.py") for name in os.listdir(tmp_path / "migrations" / "versions"))


@pytest.mark.databases("postgresql")
async def test_the_commands_of_growing_md_make_the_tables(database_url: str, tmp_path: Path) -> None:
    (commands,) = documents.consoles(GROWING)
    assert await script(commands, database_url, tmp_path) == ["0003"]


async def script(commands: list[str], database_url: str, directory: Path) -> list[str]:
    """Run commands of a page in one shell, on this database; each must succeed. Return the lines that they print."""
    assert any(URL in line for line in commands)
    programs = {"eventbus": EVENTBUS, "alembic": (sys.executable, "-m", "alembic")}
    defined = [f'{name}() {{ {shlex.join(words)} "$@"; }}' for name, words in programs.items()]
    lines = [line.replace(URL, shlex.quote(database_url)) for line in commands]
    async with Process.running(["sh", "-ec", "\n".join([*defined, *lines])], cwd=directory) as process:
        assert await process.end() == 0, process.output
    return process.lines


# --- what they say -------------------------------------------------------------------------------


def test_the_settings_table_has_every_setting_with_its_default_and_meaning() -> None:
    """Given the docstrings of Settings, then the rows of the table are made of them, in their order."""
    meanings = docstrings(Settings)
    expected = [
        f"| `{PREFIX}{name.upper()}` | {shown(field.default)} | {meanings[name]} |"
        for name, field in Settings.model_fields.items()
    ]
    assert documents.rows(README, "| variable | default | meaning |") == expected


def docstrings(kind: type) -> dict[str, str]:
    """Return what the docstrings of a class's fields say, each on one line and without its default."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, docstring in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(docstring, ast.Expr):
            assert isinstance(field.target, ast.Name)
            line = " ".join(ast.literal_eval(docstring.value).split())
            found[field.target.id] = re.sub(r" Defaults to .*$", "", line)
    return found


def shown(default: object) -> str:
    """Return a default as one would write it into the environment."""
    if default is None:
        return "–"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:.15g}`" if isinstance(default, float) else f"`{default}`"


def test_the_readme_names_the_python_and_the_extras_of_the_package() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"
    assert "Python 3.11 or newer" in README.read_text()
    extras = [row.split("`")[1] for row in documents.rows(README, "| extra | brings | for |")]
    assert extras == list(project["optional-dependencies"])


def test_the_readme_lists_every_example() -> None:
    examples = CHECKOUT / "examples"
    linked = {path for path in documents.links(README) if path.is_relative_to(examples)}
    assert linked == {*examples.glob("*.py"), *examples.glob("*/README.md")}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_links_lead_somewhere(path: Path) -> None:
    assert [link for link in documents.links(path) if not link.exists()] == []


def test_no_python_of_the_readme_is_left_untried() -> None:
    assert [block.title for block in documents.python_blocks(README)] == [
        "app.py",
        "consumer.py",
        "worker.py",
    ]
