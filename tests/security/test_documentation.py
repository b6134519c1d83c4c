"""docs/security.md: its programs run, its file is read, its claims are taken, and its tables name what there is."""

from __future__ import annotations

import json
import shlex
import sys
import time
import tomllib
from pathlib import Path

import httpx
import jwt

from eventbus_fastapi.auth import Gate, JWTAuth
from eventbus_fastapi.auth.access_file import parse_access
from tests import documents
from tests.auth.connections import request
from tests.auth.test_jwt import SECRET
from tests.examples.running import free_port
from tests.processes import CHECKOUT, Process, environment

PAGE = CHECKOUT / "docs" / "security.md"
SHOP, OPERATOR = "q9hJ2mXv7RtLw3cY5bNz8sKp", "Zk4vB8nQ1xWe6rTy3uIo9pAs"


async def test_the_app_asks_its_client_who_it_is(tmp_path: Path) -> None:
    """Given both as they are shown, when the client publishes, then it may, and nobody without a token may."""
    address = f"127.0.0.1:{free_port()}"
    for name in ("app.py", "client.py"):
        (tmp_path / name).write_text(documents.titled(PAGE, name).replace("127.0.0.1:3000", address))
    env = environment(SHOP_TOKEN=SHOP, OPERATOR_TOKEN=OPERATOR)
    server = [sys.executable, "-m", "uvicorn", "app:app", "--port", address.partition(":")[2]]
    async with Process.running(server, cwd=tmp_path, env=env) as process:
        await process.line(f"running on http://{address}")
        async with Process.running([sys.executable, "client.py"], cwd=tmp_path, env=env) as client:
            await client.line("seq=1")
        async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as http:
            assert (await http.get("/events")).status_code == 401
            assert (await http.get("/groups", headers={"x-api-key": SHOP})).status_code == 401
            assert (await http.get("/groups", headers={"authorization": f"Bearer {SHOP}"})).status_code == 403
            assert (await http.get("/groups", headers={"authorization": f"Bearer {OPERATOR}"})).status_code == 200


async def test_the_file_can_be_used(tmp_path: Path) -> None:
    text = documents.titled(PAGE, "access.toml")
    parse_access(text, "access.toml", tmp_path)
    assert [table["name"] for table in tomllib.loads(text)["principals"]] == ["shop", "operator"]


async def test_the_command_makes_a_key_and_its_hash(tmp_path: Path) -> None:
    [[command]] = documents.consoles(PAGE)
    program, *arguments = shlex.split(command.strip())
    assert program == "python"
    async with Process.running([sys.executable, *arguments], cwd=tmp_path) as process:
        assert await process.end() == 0
    key, hashed = process.output.split()
    gate = Gate(parse_access(f'principals = [{{name = "shop", key = "{hashed}"}}]', "access.toml", tmp_path))
    assert (await gate.admit(request(("x-api-key", key)))).name == "shop"


async def test_the_claims_make_a_principal() -> None:
    [shown] = [block.text for block in documents.blocks(PAGE) if block.language == "json"]
    claims = {**json.loads(shown), "exp": int(time.time()) + 60}
    auth = JWTAuth(SECRET, algorithms=["HS256"], audience=claims["aud"], issuer=claims["iss"])
    token = jwt.encode(claims, SECRET, "HS256")
    principal = await Gate(auth).admit(request(("authorization", f"Bearer {token}")))
    assert (principal.name, principal.groups) == ("shop", ("shop.*",))


def test_no_python_of_the_page_is_left_untried() -> None:
    untried = [block for block in documents.python_blocks(PAGE) if not block.title]
    assert len(untried) == 1, "the sketch of a callable, which needs an app's own users"
    compile(untried[0].text, str(PAGE), "exec")
