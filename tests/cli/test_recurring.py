"""`eventbus recurring`, beside a bus that runs on the same database."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command_line import Beside, Command, Done, url_in


async def test_recurring_events_are_added_and_shown(beside: Beside) -> None:
    assert await beside.run("recurring") == Done(0, "no recurring events\n", "")
    add = ["recurring", "add", "nightly", "0 3 * * *", "report.requested", '{"kind": "sales"}']
    added = await beside.run(*add, "--timezone", "Europe/Berlin", "--missed", "all", "--key", "k", "--ttl", "60")
    assert (added.code, added.out.startswith("recurring event 'nightly' is added; next at ")) == (0, True)
    event = await beside.bus.recurring.get("nightly")
    assert event.declaration[:9] == (
        "0 3 * * *",
        "Europe/Berlin",
        "report.requested",
        "k",
        b'{"kind": "sales"}',
        "application/json",
        None,
        60_000_000,
        "all",
    )
    header, row = (await beside.run("recurring")).out.splitlines()
    assert header.split() == ["recurring", "event", "cron", "timezone", "topic", "next", "last"]
    assert row.split()[:8] == ["nightly", "0", "3", "*", "*", "*", "Europe/Berlin", "report.requested"]
    (line,) = (await beside.run("recurring", "--json")).out.splitlines()
    assert json.loads(line)["payload"] == {"kind": "sales"}


@pytest.mark.databases("sqlite")
async def test_one_is_changed_paused_resumed_run_and_deleted(beside: Beside) -> None:
    await beside.bus.recurring.declare("nightly", "0 3 * * *", "a", 1)
    changed = await beside.run("recurring", "add", "nightly", "@hourly", "b", "text")
    assert changed.out.startswith("recurring event 'nightly' is changed; next at ")
    assert (await beside.run("recurring", "pause", "nightly")).out == "recurring event 'nightly' is paused\n"
    assert (await beside.run("recurring")).out.splitlines()[1].split()[-2:] == ["b", "paused"]
    assert (await beside.run("recurring", "run", "nightly")).out.startswith("seq=1 message_id=")
    assert (await beside.bus.get(1)).message.payload == "text"
    resumed = await beside.run("recurring", "resume", "nightly")
    assert resumed.out.startswith("recurring event 'nightly' goes on; next at ")
    assert (await beside.run("recurring", "delete", "nightly")).out == "recurring event 'nightly' is deleted\n"
    assert await beside.bus.recurring.all() == []


@pytest.mark.databases("sqlite")
async def test_what_cannot_be_used_is_one_line(beside: Beside) -> None:
    for command in ("pause", "resume", "run", "delete"):
        done = await beside.run("recurring", command, "nobody")
        assert (done.code, done.error) == (1, "error: no recurring event 'nobody'")
    for arguments, word in (
        (["0 3 * *", "a", "1"], "5 fields"),
        (["@daily", "a..b", "1"], "invalid topic"),
        (["@daily", "a", "1", "--missed", "some"], "missed must be one of skip, last, all"),
    ):
        done = await beside.run("recurring", "add", "x", *arguments)
        assert (done.code, word in done.error) == (1, True)


def test_looking_at_a_database_that_is_not_there_does_not_make_it(eventbus: Command, tmp_path: Path) -> None:
    done = eventbus("recurring", "--database-url", url_in(tmp_path))
    assert (done.code, "there is no database at" in done.error) == (1, True)
    assert list(tmp_path.iterdir()) == []
