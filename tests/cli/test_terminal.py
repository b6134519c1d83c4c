"""What the commands show, also to streams that are closed, full or no longer read."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus_fastapi.cli.terminal import visible, visible_json
from tests.cli.command_line import Server
from tests.processes import EVENTBUS, Process
from tests.server.asking import app_of, bus_on
from tests.serving import serving


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


@given(st.text())
def test_what_is_shown_has_nothing_that_a_terminal_obeys(text: str) -> None:
    assert visible(text).isprintable()


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S", "Zs"])))
def test_what_is_harmless_is_shown_as_it_is(text: str) -> None:
    assert visible(text) == text


@given(st.text())
def test_json_reads_back_as_it_was_before_it_was_shown(text: str) -> None:
    assert json.loads(visible_json(json.dumps(text, ensure_ascii=False))) == text
