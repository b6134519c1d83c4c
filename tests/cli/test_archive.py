"""`eventbus archive`, beside a bus that runs on the same database."""

from __future__ import annotations

import json
import re
from typing import get_args

import pytest

from eventbus_fastapi.cli.archive import Outcome
from eventbus_fastapi.store.group import Ended
from tests.cli.command_line import Beside, Done


@pytest.fixture
async def filled(beside: Beside) -> Beside:
    await beside.finish("mail", "user.created", "order.placed")
    await beside.finish("other", "x", outcome="dead")
    return beside


async def test_the_archive_is_listed(beside: Beside) -> None:
    assert await beside.run("archive", "list") == Done(0, "nothing in the archive\n", "")
    await beside.finish("mail", "user.created")
    header, row = (await beside.run("archive", "list")).out.splitlines()
    assert header.split() == ["id", "group", "seq", "topic", "outcome", "attempts", "seconds", "finished", "error"]
    cells = re.split(r"\s\s+", row.strip())
    assert cells[:7] == ["1", "mail", "1", "user.created", "acked", "2", "0.250"]
    assert cells[8] == r"httpx.ConnectError: refused\nby peer"


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], [1, 2, 1, 2, 3]),
        (["mail"], [1, 2]),
        (["--pattern", "user.*"], [1, 1]),
        (["--outcome", "acked"], [1, 2]),
        (["--outcome", "discarded"], []),
        (["--error", "ConnectError", "mail"], [1, 2]),
        (["--error", "ValueError"], []),
        (["--tag", "billing"], []),
        (["--finished-after", "2020-01-01", "mail"], [1, 2]),
        (["--finished-before", "2020-01-01T00:00:00Z"], []),
        (["-n", "3"], [1, 2, 1]),
    ],
)
async def test_a_list_may_be_filtered(filled: Beside, options: list[str], found: list[int]) -> None:
    done = await filled.run("archive", "list", "--json", *options)
    assert [json.loads(line)["seq"] for line in done.out.splitlines()] == found


async def test_one_is_shown_with_its_payload_and_tracebacks(filled: Beside) -> None:
    out = (await filled.run("archive", "show", "1")).out
    for line in ("topic: user.created", 'payload: {"n": 1}', "outcome: acked", "duration: 0.25", "    line 1"):
        assert line in out.splitlines()
    shown = json.loads((await filled.run("archive", "show", "1", "--json")).out)
    assert (shown["group"], shown["seq"], shown["errors"][0]["type"]) == ("mail", 1, "httpx.ConnectError")


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["show", "4711"], "error: nothing in the archive has the id 4711"),
        (["list", "nobody"], "error: no group 'nobody'"),
    ],
)
async def test_what_is_not_there_is_said(beside: Beside, arguments: list[str], error: str) -> None:
    done = await beside.run("archive", *arguments)
    assert (done.code, done.error) == (1, error)


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("options", [["--outcome", "lost"], ["--finished-after", "today"]])
async def test_a_filter_that_cannot_be_is_refused(beside: Beside, options: list[str]) -> None:
    done = await beside.run("archive", "list", *options)
    assert done.code == 2
    assert options[0] in done.error


def test_the_outcomes_of_the_command_are_those_of_the_store() -> None:
    assert [outcome.value for outcome in Outcome] == list(get_args(Ended))
