"""The command `eventbus`: what all its commands have in common."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path

import pytest

from eventbus_fastapi.version import VERSION
from tests.cli.command_line import Command, Done
from tests.processes import Process


def test_it_tells_its_version(eventbus: Command) -> None:
    assert eventbus("--version") == Done(0, f"eventbus {VERSION}\n", "")


def test_it_lists_its_commands(eventbus: Command) -> None:
    done = eventbus("--help")

    assert done.code == 0
    for command in ("serve", "publish", "tail", "groups", "dead", "retry", "migrate"):
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
        (["groups", "nope"], ["nope", "eventbus groups --help"]),
        (["groups", "reset", "mail"], ["--to", "eventbus groups reset --help"]),
        (["groups", "reset", "mail", "--to", "then"], ["--to", "now, earliest, a seq or a time", "'then'"]),
        (["dead"], ["Missing command"]),
        (["dead", "list", "--died-after", "then"], ["--died-after", "a time", "'then'"]),
        (["dead", "show", "mail", "0"], ["'seq'", "eventbus dead show --help"]),
        (["retry", "mail"], ["say which dead letters"]),
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


@pytest.mark.parametrize(
    "command", [["serve"], ["publish", "a", "1"], ["tail", "a"], ["migrate", "current"], ["groups"], ["dead", "list"]]
)
def test_a_setting_that_is_misspelt_is_one_line(
    eventbus: Command, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("EVENTBUS_DATABASE_URI", "x")

    done = eventbus(*command)

    assert done == Done(1, "", "error: unknown setting EVENTBUS_DATABASE_URI; did you mean EVENTBUS_DATABASE_URL?\n")


async def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    script = "import sys; sys.modules['typer'] = None; import eventbus_fastapi.cli"

    async with Process.running([sys.executable, "-c", script], cwd=tmp_path) as process:
        assert await process.end() == 1

    assert process.output == "error: typer is not installed; the command needs: pip install 'eventbus-fastapi[cli]'\n"
