"""Content types: what the bytes of a payload are. Nothing here looks at the bytes."""

from __future__ import annotations

import re
from functools import lru_cache

from eventbus_fastapi.errors import InvalidPayload, quote

JSON = "application/json"
TEXT = "text/plain"
BINARY = "application/octet-stream"

MAX_CONTENT_TYPE = 127
"""Longest content type, characters."""


@lru_cache(maxsize=1_024)
def is_json(content_type: str) -> bool:
    """Say whether a content type is JSON: `application/json` or `…+json`, with any parameters."""
    media_type = _media_type(content_type)
    return media_type == JSON or media_type.endswith("+json")


@lru_cache(maxsize=1_024)
def is_text(content_type: str) -> bool:
    """Say whether a content type is text: `text/…` with any parameters, unless it is JSON."""
    return _media_type(content_type).startswith("text/") and not is_json(content_type)


def check_content_type(content_type: object) -> str:
    """Return the content type as it came.

    Raises:
        InvalidPayload: it is not ASCII `type/subtype` with optional parameters, is longer than 127 characters, or names
            a charset other than UTF-8 for text or JSON.
    """
    if not isinstance(content_type, str):
        raise InvalidPayload(f"content type must be str, got {type(content_type).__name__}")
    return _checked_content_type(content_type)


_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_QUOTED = r'"(?:[ !#-\[\]-~]|\\[ -~])*"'
_CONTENT_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}(?:[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|{_QUOTED}))*")
_CHARSET = re.compile(r';[ \t]*charset="?([^";]*)', re.IGNORECASE)


@lru_cache(maxsize=1_024)
def _checked_content_type(content_type: str) -> str:
    if len(content_type) > MAX_CONTENT_TYPE:
        raise InvalidPayload(f"content type is {len(content_type):,} characters, limit is {MAX_CONTENT_TYPE}")
    if not _CONTENT_TYPE.fullmatch(content_type):
        raise InvalidPayload(f"invalid content type {quote(content_type)}: expected type/subtype, like {JSON}")
    charset = _CHARSET.search(content_type)
    is_read_as_utf8 = is_json(content_type) or is_text(content_type)
    if charset and is_read_as_utf8 and charset[1].strip().lower() not in ("utf-8", "utf8", "us-ascii"):
        raise InvalidPayload(f"content type {quote(content_type)}: text is UTF-8; send other charsets as {BINARY}")
    return str.__str__(content_type)


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()
