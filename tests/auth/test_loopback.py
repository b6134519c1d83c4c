"""Where a bus that asks nobody who they are may answer."""

from __future__ import annotations

import pytest

from eventbus_fastapi.auth.loopback import is_loopback, names_loopback, require_loopback, uvicorn_host
from eventbus_fastapi.errors import SettingsError


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "::ffff:127.0.0.1", "localhost", "LOCALHOST"]
)
def test_addresses_of_this_machine(host: str) -> None:
    assert is_loopback(host)
    require_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "", "10.0.0.1", "::ffff:10.0.0.1", "bus.example", "localhost.evil.example", "127.0.0.1.nip.io"],
)
def test_addresses_that_others_reach_need_a_word(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(SettingsError, match=r"EVENTBUS_AUTH_FILE, or give --insecure"):
        require_loopback(host)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:3000", "localhost:3000", "LocalHost", "app.localhost:80", "[::1]", "[::1]:3000"]
)
def test_names_of_this_machine(host: str) -> None:
    assert names_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        ":",
        "bus",
        "evil.example:3000",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "127.0.0.1:x",
        "::1",
        "10.0.0.1",
    ],
)
def test_names_that_a_page_of_somebody_else_may_have(host: str) -> None:
    assert not names_loopback(host)


UVICORN = "/venv/bin/uvicorn"


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ([UVICORN, "m:app"], {}, "127.0.0.1"),
        ([UVICORN, "m:app", "--host", "0.0.0.0"], {}, "0.0.0.0"),
        ([UVICORN, "--host=0.0.0.0", "m:app"], {}, "0.0.0.0"),
        ([UVICORN, "m:app"], {"UVICORN_HOST": "0.0.0.0"}, "0.0.0.0"),
        ([UVICORN, "m:app", "--host", "127.0.0.1"], {"UVICORN_HOST": "0.0.0.0"}, "127.0.0.1"),
        (["/lib/uvicorn/__main__.py", "m:app", "--host", "::"], {}, "::"),
        (["pytest", "--host", "0.0.0.0"], {}, None),
        ([], {}, None),
    ],
)
def test_the_host_of_the_command_uvicorn(
    arguments: list[str], environment: dict[str, str], expected: str | None
) -> None:
    assert uvicorn_host(arguments, environment) == expected
