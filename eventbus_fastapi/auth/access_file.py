"""The access file: who may do what on a standalone bus, in TOML.

    [[principals]]
    name = "shop"
    key = "sha256:9f86d0…"                    # or the key itself; `keys` for several, while one replaces another
    publish = ["shop.#"]
    subscribe = ["shop.#", "user.*"]
    groups = ["shop.*"]
    admin = false
    expires_at = 2027-01-01T00:00:00Z

    [jwt]                                     # tokens of others, beside the keys
    key_file = "issuer.pem"                   # or `key`
    algorithms = ["RS256"]
    audience = "eventbus"
    issuer = "https://id.example"

A key is taken from `Authorization: Bearer …` and from `X-API-Key`. No message quotes one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from eventbus_fastapi.auth.any_of import AnyOf
from eventbus_fastapi.auth.bearer import ApiKeyAuth, BearerAuth
from eventbus_fastapi.auth.gate import Authenticate
from eventbus_fastapi.auth.jwt import JWTAuth
from eventbus_fastapi.auth.keys import digest_of
from eventbus_fastapi.auth.principal import Principal
from eventbus_fastapi.errors import SettingsError, quote
from eventbus_fastapi.settings import Settings

_OF_PRINCIPALS = ("name", "key", "keys", "publish", "subscribe", "groups", "admin", "expires_at")
_OF_JWT = ("key", "key_file", "algorithms", "audience", "issuer")


def access_of(settings: Settings) -> Authenticate | None:
    """Return who may come in to a bus that stands alone; None: everybody.

    Raises:
        SettingsError: what says so cannot be read or used.
    """
    if settings.auth_file is not None and settings.auth is not None:
        raise SettingsError("got EVENTBUS_AUTH_FILE and EVENTBUS_AUTH, expected one of them")
    if settings.auth_file is not None:
        return read_access_file(Path(settings.auth_file))
    if settings.auth is not None:
        return parse_access(settings.auth.get_secret_value(), "EVENTBUS_AUTH", Path())
    return None


def read_access_file(path: Path) -> Authenticate:
    """Return who the file says may come in.

    Raises:
        SettingsError: it cannot be read or used; the message names the file and the line or field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise SettingsError(f"{path}: {reason} (EVENTBUS_AUTH_FILE)") from None
    return parse_access(text, str(path), path.parent)


def parse_access(text: str, source: str, directory: Path) -> Authenticate:
    """Return who a text says may come in. `source` names it in messages; other files are looked for in `directory`.

    Raises:
        SettingsError: it cannot be used.
    """
    try:
        access = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise SettingsError(f"{source}: {exc}") from None
    try:
        return _read(access, directory)
    except SettingsError as exc:
        raise SettingsError(f"{source}: {exc}") from None


def _read(access: Mapping[str, Any], directory: Path) -> Authenticate:
    _refuse_unknown(access, ("principals", "jwt"), "the file")
    keys: dict[str, Principal] = {}
    principals = access.get("principals", [])
    if not isinstance(principals, list):
        raise SettingsError("principals: expected tables that begin with [[principals]]")
    for place, table in enumerate(principals):
        where = f"principals[{place}]"
        try:
            _add_principal(table, keys)
        except SettingsError as exc:
            name = table.get("name") if isinstance(table, Mapping) else None
            raise SettingsError(f"{where} ({quote(name)}): {exc}" if name else f"{where}: {exc}") from None
    ways: list[Authenticate] = [BearerAuth(keys), ApiKeyAuth(keys)] if keys else []
    if "jwt" in access:
        try:
            ways.append(_read_jwt(access["jwt"], directory))
        except SettingsError as exc:
            raise SettingsError(f"jwt: {exc}") from None
    if not ways:
        raise SettingsError("expected [[principals]] or [jwt], got neither: nobody could come in")
    return AnyOf(*ways)


def _add_principal(table: object, keys: dict[str, Principal]) -> None:
    if not isinstance(table, Mapping):
        raise SettingsError(f"expected a table, got {type(table).__name__}")
    _refuse_unknown(table, _OF_PRINCIPALS, "a principal")
    if "name" not in table:
        raise SettingsError("'name' is missing")
    principal = Principal(
        table["name"],
        publish=table.get("publish", ()),
        subscribe=table.get("subscribe", ()),
        groups=table.get("groups", ()),
        is_admin=table.get("admin", False),
        expires_at=table.get("expires_at"),
    )
    if ("key" in table) == ("keys" in table):
        raise SettingsError("expected one of 'key' and 'keys'")
    given = [table["key"]] if "key" in table else table["keys"]
    if not isinstance(given, list) or not given:
        raise SettingsError("keys: expected a list of one or more")
    for key in given:
        named = f"sha256:{digest_of(key).hex()}"
        if named in keys:
            raise SettingsError(f"its key is also that of {quote(keys[named].name)}")
        keys[named] = principal


def _read_jwt(table: object, directory: Path) -> JWTAuth:
    if not isinstance(table, Mapping):
        raise SettingsError(f"expected a table, got {type(table).__name__}")
    _refuse_unknown(table, _OF_JWT, "[jwt]")
    if ("key" in table) == ("key_file" in table):
        raise SettingsError("expected one of 'key' and 'key_file'")
    key = table.get("key")
    if "key_file" in table:
        try:
            key = (directory / str(table["key_file"])).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
            raise SettingsError(f"key_file {quote(table['key_file'])}: {reason}") from None
    if not isinstance(key, str):
        raise SettingsError(f"key: expected a text, got {type(key).__name__}")
    for name in ("audience", "issuer"):
        if not isinstance(table.get(name, ""), str | list):
            raise SettingsError(f"{name}: expected a text or a list of them")
    return JWTAuth(
        key, algorithms=table.get("algorithms", ()), audience=table.get("audience"), issuer=table.get("issuer")
    )


def _refuse_unknown(table: Mapping[str, Any], known: Collection[str], what: str) -> None:
    for name in table:
        if name not in known:
            raise SettingsError(f"unknown field {quote(name)}; {what} has {', '.join(known)}")
