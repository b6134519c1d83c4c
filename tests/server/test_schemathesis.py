"""schemathesis, which knows of us only what the OpenAPI document says, finds nothing to complain of.

It sends the examples, what lies at the limits of each schema, and what fits a schema or just does not, to every
operation. More of it: `make run`, and beside it `.venv/bin/st run http://127.0.0.1:3000/openapi.json -n 1000`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from eventbus_fastapi.app import create_app
from eventbus_fastapi.settings import Settings
from tests.server.examples import prepare
from tests.serving import serving
from tests.tables import log_at

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = 4
"""What is tried of each operation, beside its examples and limits."""


@pytest.mark.timeout(300)  # seconds of two idle cores, minutes of busy ones
async def test_no_check_of_schemathesis_fails(tmp_path: Path) -> None:
    app = create_app(Settings(database_url=log_at(tmp_path / "eventbus.db")))

    async with serving(app) as served:
        await prepare(app.state.eventbus)
        tested = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("st"),
            *("--config-file", ROOT / "schemathesis.toml", "run", f"{served.http}/openapi.json"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES)),
            *("--generation-deterministic", "--no-color", "--warnings", "off"),
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = (await tested.communicate())[0].decode()

    assert tested.returncode == 0, said
    assert "No issues found" in said or "passed" in said, said
