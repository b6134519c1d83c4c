"""`eventbus limits`, beside a bus that runs on the same database."""

from __future__ import annotations

import json

import pytest

from tests.cli.command_line import Beside, Done


@pytest.mark.databases("sqlite")
async def test_a_limit_is_made_changed_and_shown(beside: Beside) -> None:
    assert await beside.run("limits") == Done(0, "no rate limits\n", "")
    done = await beside.run("limits", "set", "mail", "100", "--per", "60")
    assert done == Done(0, "rate limit 'mail' gives 100 permits per 60 s\n", "")
    await beside.run("limits", "set", "mail", "50", "--per", "0.5")
    header, row = (await beside.run("limits")).out.splitlines()
    assert (header.split(), row.split()) == (["limit", "permits", "per", "seconds"], ["mail", "50", "0.5"])
    assert json.loads((await beside.run("limits", "--json")).out) == {"name": "mail", "permits": 50, "per": 0.5}


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(("permits", "per"), [("0", "60"), ("5", "nan"), ("5", "-1"), ("5", "inf"), ("5", "0")])
async def test_what_cannot_be_a_limit_is_refused_in_one_line(beside: Beside, permits: str, per: str) -> None:
    done = await beside.run("limits", "set", "mail", permits, f"--per={per}")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "rate limit 'mail'" in done.err
