"""The file of a standalone bus: who may come in, and what is wrong with it by its line or field."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from eventbus_fastapi import Settings
from eventbus_fastapi.auth import Gate
from eventbus_fastapi.auth.access_file import access_of, parse_access, read_access_file
from eventbus_fastapi.errors import SettingsError, Unauthenticated
from tests.auth.connections import request
from tests.auth.test_jwt import PRIVATE_PEM, PUBLIC_PEM, signed

KEY = "q9hJ2mXv7RtLw3cY5bNz8sKp"
OLD, NEW = "Zk4vB8nQ1xWe6rTy3uIo9pAs", "Hd7gF2kL5mN8bV1cX4zQ0wEr"
SHOP = f'[[principals]]\nname = "shop"\nkey = "{KEY}"\npublish = ["shop.#"]\n'


async def test_the_file_says_who_may_do_what(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    hashed = hashlib.sha256(OLD.encode()).hexdigest()
    path.write_text(
        f"""{SHOP}
subscribe = ["shop.#", "user.*"]
groups = ["shop.*"]
expires_at = 2999-01-01T00:00:00Z

[[principals]]
name = "operator"
keys = ["sha256:{hashed}", "{NEW}"]
admin = true
"""
    )
    gate = Gate(read_access_file(path))

    shop = await gate.admit(request(("authorization", f"Bearer {KEY}")))
    assert (shop.name, shop.publish, shop.subscribe) == ("shop", ("shop.#",), ("shop.#", "user.*"))
    assert shop.groups == ("shop.*",)
    assert not shop.is_admin
    assert await gate.admit(request(("x-api-key", KEY))) is shop
    for key in (OLD, NEW):
        assert (await gate.admit(request(("x-api-key", key)))).is_admin
    with pytest.raises(Unauthenticated):
        await gate.admit(request(("x-api-key", hashed)))


async def test_tokens_of_others_stand_beside_the_keys(tmp_path: Path) -> None:
    (tmp_path / "issuer.pem").write_text(PUBLIC_PEM)
    text = f"""{SHOP}
[jwt]
key_file = "issuer.pem"
algorithms = ["RS256"]
audience = "eventbus"
issuer = "https://id.example"
"""
    gate = Gate(parse_access(text, "EVENTBUS_AUTH", tmp_path))
    token = signed(PRIVATE_PEM, "RS256")
    assert (await gate.admit(request(("authorization", f"Bearer {token}")))).subscribe == ("shop.#", "user.*")
    assert (await gate.admit(request(("authorization", f"Bearer {KEY}")))).subscribe == ()


async def test_the_text_may_be_a_setting_on_one_line() -> None:
    text = f'principals = [{{name = "shop", key = "{KEY}"}}]'
    authenticate = access_of(Settings(auth=text))
    assert (await Gate(authenticate).admit(request(("x-api-key", KEY)))).name == "shop"


def test_without_either_nobody_is_asked() -> None:
    assert access_of(Settings()) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[principals]]\nname = shop", "Invalid value (at line 2, column 8)"),
        ("", "got neither: nobody could come in"),
        ("principals = []", "got neither: nobody could come in"),
        ("[[principles]]\nname = 'x'", "unknown field 'principles'; the file has principals, jwt"),
        ("principals = 5", "principals: expected tables"),
        ("principals = [5]", "principals[0]: expected a table, got int"),
        (
            f"{SHOP}pubish = []",
            "principals[0] ('shop'): unknown field 'pubish'; a principal has name, key, keys,",
        ),
        (f"[[principals]]\nkey = '{KEY}'", "principals[0]: 'name' is missing"),
        ("[[principals]]\nname = 'x'", "principals[0] ('x'): expected one of 'key' and 'keys'"),
        (f"{SHOP}keys = ['{OLD}']", "expected one of 'key' and 'keys'"),
        (
            "[[principals]]\nname = 'x'\nkey = 'hunter2'",
            "principals[0] ('x'): the key is weak: 7 characters,",
        ),
        ("[[principals]]\nname = 'x'\nkey = ''", "the key is empty"),
        ("[[principals]]\nname = 'x'\nkey = 5", "a key must be str, got int"),
        ("[[principals]]\nname = 'x'\nkey = 'sha256:abc'", "expected 64 hexadecimal digits"),
        ("[[principals]]\nname = 'x'\nkeys = []", "keys: expected a list of one or more"),
        (f"{SHOP}{SHOP.replace('shop', 'other')}", "principals[1] ('other'): its key is also that of 'shop'"),
        (SHOP.replace('["shop.#"]', '"shop.#"'), "publish: expected a list of patterns, got 'shop.#'"),
        (SHOP.replace("shop.#", "shop..#"), "publish: invalid pattern 'shop..#': segment 2 is empty"),
        (f"{SHOP}admin = 1", "is_admin: expected true or false, got 1"),
        (f"{SHOP}expires_at = 2027-01-01T00:00:00", "expires_at: expected a time with its zone"),
        (f"{SHOP}expires_at = 'never'", "expires_at: expected a time with its zone, got 'never'"),
        ("[jwt]\nkey = 'short'\nalgorithms = ['HS256']", "jwt: key: the secret is weak: 5 bytes"),
        ("[jwt]\nkey = 'x'\nkey_file = 'y'", "jwt: expected one of 'key' and 'key_file'"),
        ("[jwt]\nkey_file = 'missing.pem'\nalgorithms = ['RS256']", "jwt: key_file 'missing.pem': No such file"),
        ("[jwt]\nkey = 'x'\nalgorithms = ['none']", "jwt: algorithms: expected some of"),
        ("jwt = 5", "jwt: expected a table, got int"),
    ],
)
def test_what_is_wrong_is_said_by_its_line_or_field_and_no_key_is_quoted(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as refused:
        read_access_file(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert words in str(refused.value)
    for secret in (KEY, OLD, "hunter2"):
        assert secret not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing.toml: No such file or directory \(EVENTBUS_AUTH_FILE\)"):
        access_of(Settings(auth_file=str(tmp_path / "missing.toml")))


def test_one_of_both_is_enough() -> None:
    with pytest.raises(SettingsError, match="expected one of them"):
        access_of(Settings(auth="", auth_file="x"))
