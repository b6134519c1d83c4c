"""The name of a group: a text that is also a place in a URL, an argument of a command and a word in a log."""

from __future__ import annotations

from eventbus_fastapi.errors import InvalidGroup, quote
from eventbus_fastapi.names import MAX_NAME, is_name

ENDINGS = ("retries", "blocked-keys", "pause", "resume", "reset")
"""What stands after the name of a group in the paths of HTTP."""


def check_group_name(name: object, of: str = "group") -> str:
    """Return the name of a group, or of something else whose names are like it.

    It has 1 to 255 bytes, no spaces and no control characters. A name with slashes must be the path that it looks
    like: `shop/mail` is, `/shop`, `shop/../mail` and `shop/retries` are not.

    Raises:
        InvalidGroup: it cannot be one.
    """
    if not isinstance(name, str):
        raise InvalidGroup(f"the name of a {of} must be str, got {type(name).__name__}")
    if not is_name(name):
        expected = f"the name of a {of} must be 1 to {MAX_NAME} bytes without spaces and control characters"
        raise InvalidGroup(f"{expected}, got {quote(name)}")
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise InvalidGroup(f"the name of a {of} has no empty part, . or .. between slashes, got {quote(name)}")
    if len(parts) > 1 and parts[-1] in ENDINGS:
        raise InvalidGroup(f"the name of a {of} does not end with /{parts[-1]}, got {quote(name)}")
    return str.__str__(name)
