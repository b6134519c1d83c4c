"""The token that a client shows: a text, or a callable that gets a fresh one. It is never shown to anybody else."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

from eventbus_fastapi.errors import SettingsError

Token = str | Callable[[], str | Awaitable[str]]
"""A token; or what returns one, async or not. That is called for each connection, and before the present one ends."""

MAX_TOKEN = 8_192
EXPECTED = f"1 to {MAX_TOKEN:,} visible ASCII characters"


async def obtain(token: Token) -> str:
    """Return the token to show now.

    Raises:
        SettingsError: the callable returned something else.
    """
    given = token() if callable(token) else token
    found = await given if inspect.isawaitable(given) else given
    if not is_token(found):
        raise SettingsError(f"token: expected {EXPECTED}, got {type(found).__name__}")
    return found


def is_token(value: object) -> bool:
    """Say whether a value can be a token."""
    is_text = isinstance(value, str) and 1 <= len(value) <= MAX_TOKEN
    return is_text and all("!" <= character <= "~" for character in str(value))
