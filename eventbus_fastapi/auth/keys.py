"""Keys: secrets that stand for a principal, as tokens and API keys are.

Only their SHA-256 is kept, so no key is in a dump, a traceback or a log. A key is looked up by it: how long that takes
says nothing about the key, as nobody can choose what the hash of a guess begins with; and what is found is compared in
constant time. That is no way to keep passwords; so a key that could be one is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping

from eventbus_fastapi.auth.credentials import MAX_TOKEN
from eventbus_fastapi.auth.principal import Principal
from eventbus_fastapi.errors import SettingsError

SHORTEST = 22
"""Fewest characters of a key: 128 bits in base64."""
SHORTEST_HEX = 32
"""Fewest characters of a key of hexadecimal digits: 128 bits."""
FEWEST_DIFFERENT = 8
"""Fewest different characters of a key; one of 128 random bits has more."""

_VISIBLE = re.compile(r"[\x21-\x7e]*")
_HEX = re.compile(r"[0-9a-fA-F-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REMEDY = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"


class Keys:
    """See the module's docstring.

    Args:
        principals: by key; or by `sha256:` and the hexadecimal SHA-256 of the key.

    Raises:
        SettingsError: a key is weak, or malformed.
    """

    def __init__(self, principals: Mapping[str, Principal]) -> None:
        self._principals: dict[bytes, Principal] = {}
        for key, principal in principals.items():
            if not isinstance(principal, Principal):
                raise SettingsError(f"expected a Principal for each key, got {type(principal).__name__}")
            digest = digest_of(key)
            if digest in self._principals:
                raise SettingsError(f"a key of {principal.name!a} is also that of {self._principals[digest].name!a}")
            self._principals[digest] = principal

    def find(self, key: str) -> Principal | None:
        """Return whom a key stands for; None: nobody."""
        digest = _hash(key)
        for known in (digest,) if digest in self._principals else ():
            if hmac.compare_digest(known, digest):
                return self._principals[known]
        return None

    def __repr__(self) -> str:
        return f"<Keys of {', '.join(sorted({principal.name for principal in self._principals.values()}))}>"


def digest_of(key: object) -> bytes:
    """Return the SHA-256 of a key that is strong enough, or that the text names.

    Raises:
        SettingsError: it is weak or malformed. The message does not quote it.
    """
    if not isinstance(key, str):
        raise SettingsError(f"a key must be str, got {type(key).__name__}")
    kind, _, digest = key.partition(":")
    if kind == "sha256":
        if not _SHA256.fullmatch(digest):
            raise SettingsError("expected 64 hexadecimal digits in lower case after 'sha256:'")
        return bytes.fromhex(digest)
    if reason := _weakness(key):
        raise SettingsError(f"the key {reason}; {_REMEDY}")
    return _hash(key)


def _weakness(key: str) -> str | None:
    """Say why nobody should trust a key; None: it may have the 128 bits that it must."""
    if not key:
        return "is empty"
    if not _VISIBLE.fullmatch(key) or len(key) > MAX_TOKEN:
        return f"is not of visible ASCII characters, at most {MAX_TOKEN:,}"
    shortest = SHORTEST_HEX if _HEX.fullmatch(key) else SHORTEST
    if len(key) < shortest:
        return f"is weak: {len(key)} characters, expected {shortest} or more"
    if len(set(key)) < FEWEST_DIFFERENT:
        return f"is weak: {len(set(key))} different characters, expected {FEWEST_DIFFERENT} or more"
    return None


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
