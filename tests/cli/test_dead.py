"""`eventbus dead` and `eventbus retry`, beside a bus that runs on the same database."""

from __future__ import annotations

import json
import re

import pytest

from tests.cli.command_line import Beside, Done


async def seqs(beside: Beside, group: str = "mail") -> list[int]:
    return [entry.seq for _, entry in (await beside.bus.groups.dead_letters(group)).entries]


async def test_dead_letters_are_listed(beside: Beside) -> None:
    assert await beside.run("dead", "list") == Done(0, "no dead letters\n", "")
    await beside.kill("mail", "user.created", "order.placed")
    await beside.kill("other", "x")

    done = await beside.run("dead", "list", "mail")

    header, *rows = done.out.splitlines()
    assert header.split() == ["group", "seq", "topic", "attempts", "died", "error"]
    assert [re.split(r"\s\s+", row) for row in rows] == [
        ["mail", "1", "user.created", "1", DIED, r"httpx.ConnectError: refused\nby peer"],
        ["mail", "2", "order.placed", "1", DIED, r"httpx.ConnectError: refused\nby peer"],
    ]
    assert len((await beside.run("dead", "list")).out.splitlines()) == 6


class Died(str):
    """Any time of today."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", str(other)) is not None


DIED = Died()


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], [1, 2, 3]),
        (["--pattern", "user.*"], [1, 3]),
        (["--pattern", "order.*", "--pattern", "user.created"], [1, 2]),
        (["--error", "ConnectError"], [1, 2, 3]),
        (["--error", "ValueError"], []),
        (["--attempts", "2"], []),
        (["--tag", "billing"], []),
        (["--died-after", "2020-01-01"], [1, 2, 3]),
        (["--died-before", "2020-01-01T00:00:00Z"], []),
        (["-n", "2"], [1, 2]),
    ],
)
async def test_dead_letters_are_listed_by_filter_as_json(beside: Beside, options: list[str], found: list[int]) -> None:
    await beside.kill("mail", "user.created", "order.placed", "user.deleted")
    done = await beside.run("dead", "list", "mail", "--json", *options)
    assert [json.loads(line)["seq"] for line in done.out.splitlines()] == found


async def test_a_dead_letter_is_shown_with_payload_and_traceback(beside: Beside) -> None:
    await beside.kill("mail", "user.created")

    done = await beside.run("dead", "show", "mail", "1")

    lines = done.out.splitlines()
    assert {"seq: 1", "topic: user.created", 'payload: {"n": 1}', "group: mail", "attempts: 1"} < set(lines)
    assert lines[-4:] == [
        "attempt 1  2026-01-01T00:00:00.000000Z  web-1",
        "  Traceback:",
        "    line 1",
        "  httpx.ConnectError: refused",
    ]
    shown = json.loads((await beside.run("dead", "show", "mail", "1", "--json")).out)
    assert (shown["payload"], shown["errors"][0]["type"]) == ({"n": 1}, "httpx.ConnectError")


@pytest.mark.databases("sqlite")
async def test_a_dead_letter_that_is_not_there_is_one_line(beside: Beside) -> None:
    await beside.kill("mail", "a")
    done = await beside.run("dead", "show", "mail", "2")
    assert (done.code, done.error) == (1, "error: no dead letter of group 'mail' at seq 2")


async def test_dead_letters_are_retried_by_seq_by_filter_and_all(beside: Beside) -> None:
    await beside.kill("mail", "a", "b", "a", "c")
    assert (await beside.run("retry", "mail", "1", "99")).out == "dead letters of group 'mail' tried again: 1\n"
    assert (await beside.run("retry", "mail", "--pattern", "b")).out.endswith(": 1\n")
    assert await seqs(beside) == [3, 4]
    assert (await beside.run("dead", "retry", "mail", "--all")).out.endswith(": 2\n")
    assert [item.seq for item in await beside.bus.groups.retries("mail")] == [1, 2, 3, 4]


async def test_dead_letters_are_discarded_by_seq_by_filter_and_all(beside: Beside) -> None:
    await beside.kill("mail", "a", "b", "a", "c")
    assert (await beside.run("dead", "discard", "mail", "1")).out == "dead letters of group 'mail' discarded: 1\n"
    assert (await beside.run("dead", "discard", "mail", "--pattern", "b")).out.endswith(": 1\n")
    assert await seqs(beside) == [3, 4]
    assert (await beside.run("dead", "discard", "mail", "--all")).out.endswith(": 2\n")
    assert await seqs(beside) == []


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("command", [["retry"], ["dead", "discard"], ["dead", "retry"]])
@pytest.mark.parametrize("options", [[], ["1", "--all"], ["1", "--pattern", "a"], ["--all", "--error", "E"]])
async def test_which_are_meant_is_said_in_one_way(beside: Beside, command: list[str], options: list[str]) -> None:
    await beside.kill("mail", "a")
    done = await beside.run(*command, "mail", *options)
    assert (done.code, "say which dead letters" in done.error) == (2, True)
    assert await seqs(beside) == [1]
