"""`eventbus groups`, beside a bus that runs on the same database."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from tests.cli.command_line import Beside, Command, Done, url_in


async def test_groups_are_shown_with_what_they_have_to_do(beside: Beside) -> None:
    assert await beside.run("groups") == Done(0, "no groups\n", "")
    await beside.settle("mail", "a", "b", dead=False)
    await beside.kill("mail", "c")
    await beside.bus.groups.declare("shop/größe", ["user.*", "order.#"])
    await beside.bus.groups.pause("shop/größe")

    done = await beside.run("groups")

    assert (done.code, done.err) == (0, "")
    header, *rows = done.out.splitlines()
    assert header.split() == ["group", "reads", "lag", "seconds", "in", "flight", "retries", "dead", "lost"]
    assert [row.split() for row in rows] == [
        ["mail", "#", "0", "0", "0", "2", "1", "0"],
        ["shop/größe", "user.*", "order.#", "0", "0", "0", "0", "0", "0", "paused"],
    ]


async def test_groups_are_shown_as_lines_of_json(beside: Beside) -> None:
    await beside.kill("mail", "a")
    (line,) = (await beside.run("groups", "--json")).out.splitlines()
    group = json.loads(line)
    assert (group["name"], group["patterns"], group["dead"], group["paused"]) == ("mail", ["#"], 1, False)


async def test_a_group_is_paused_and_resumed_while_the_bus_runs(beside: Beside) -> None:
    await beside.bus.groups.declare("mail", ["#"])
    assert (await beside.run("groups", "pause", "mail")).out == "group 'mail' is paused\n"
    assert (await beside.bus.groups.group("mail")).group.is_paused
    assert (await beside.run("groups", "resume", "mail")).out == "group 'mail' goes on\n"
    assert not (await beside.bus.groups.group("mail")).group.is_paused


@pytest.mark.parametrize(
    ("to", "after"),
    [("earliest", 0), ("now", 2), ("1", 1), ("2020-01-01", 0), ("2100-01-01T00:00:00Z", 2)],
)
@pytest.mark.databases("sqlite")
async def test_a_group_is_reset(beside: Beside, to: str, after: int) -> None:
    await beside.settle("mail", "a", "b", dead=False)
    done = await beside.run("groups", "reset", "mail", "--to", to)
    assert done == Done(0, f"group 'mail' reads on after seq {after}\n", "")
    status = await beside.bus.groups.group("mail")
    assert (status.group.cursor, status.figures.retries) == (after, 0)


async def test_a_group_is_deleted(beside: Beside) -> None:
    await beside.kill("mail", "a")
    assert (await beside.run("groups", "delete", "mail")).out == "group 'mail' is deleted\n"
    assert await beside.bus.groups.groups() == []


@pytest.mark.databases("sqlite")
async def test_a_group_that_is_not_there_is_one_line(beside: Beside) -> None:
    for command in (["pause"], ["resume"], ["delete"], ["reset", "--to", "now"]):
        done = await beside.run("groups", *command, "nobody")
        assert (done.code, done.error) == (1, "error: no group 'nobody'")


@pytest.mark.databases("sqlite")
async def test_a_seq_beyond_the_log_is_one_line(beside: Beside) -> None:
    await beside.bus.groups.declare("mail", ["#"])
    done = await beside.run("groups", "reset", "mail", "--to", "7")
    assert (done.code, done.error) == (1, "error: a group cannot read after seq 7: the log ends at 0")


@pytest.mark.databases("sqlite")
async def test_the_database_may_be_named_before_the_command(beside: Beside, eventbus: Command) -> None:
    await beside.bus.groups.declare("mail", ["#"])
    await asyncio.to_thread(eventbus, "groups", "--database-url", beside.database_url, "pause", "mail")
    assert (await beside.bus.groups.group("mail")).group.is_paused


def test_looking_at_a_database_that_is_not_there_does_not_make_it(eventbus: Command, tmp_path: Path) -> None:
    for command in (["groups"], ["groups", "pause", "mail"], ["dead", "list"], ["retry", "mail", "--all"]):
        done = eventbus(*command, "--database-url", url_in(tmp_path))
        assert (done.code, "there is no database at" in done.error) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_a_database_without_the_tables_is_left_as_it_is(eventbus: Command, tmp_path: Path) -> None:
    (tmp_path / "eventbus.db").touch()
    done = eventbus("groups", "--database-url", url_in(tmp_path))
    assert (done.code, "eventbus migrate upgrade" in done.error) == (1, True)
    with contextlib.closing(sqlite3.connect(tmp_path / "eventbus.db")) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == []
