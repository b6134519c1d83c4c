"""What strangers wrote, as text that shows what it is: payloads, keys, errors, names.

Jinja escapes what means something in HTML. What is left are characters that are not seen, or that turn around how the
rest of a line is read: each is shown by its number instead. Long texts are cut, and whoever shows them says so.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from markupsafe import Markup, escape

from eventbus_fastapi import codec

CUT = 65_536
"""Characters of a payload that a page shows unless all of it is asked for."""
CUT_BYTES = 4_096
"""Bytes of a payload that is no text, likewise."""
INDENTED = 262_144
"""Characters up to which JSON is laid out anew; longer ones are shown as they came."""
DEEPEST = 100
"""Nesting up to which it is."""

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff\U000e0000-\U000e0fff\ud800-\udfff]"
)
"""Control characters except tab and newline, and what is not seen or turns the direction of text around."""

_TOKENS = re.compile(r'"(?:[^"\\]++|\\.?)*+"?|[{}\[\],:]|[^\s{}\[\],:"]++', re.DOTALL)
"""Takes every character but white space between values, also of what is no JSON, and goes over each once."""


class Shown(NamedTuple):
    """A payload as a page shows it."""

    kind: Literal["json", "text", "bytes"]
    text: str
    is_cut: bool


def visible(text: object, limit: int | None = None) -> Markup:
    """Return text as HTML in which every character is seen; with a limit, its beginning."""
    plain = str(text)
    is_cut = limit is not None and len(plain) > limit
    if is_cut:
        plain = plain[:limit]
    parts: list[str] = []
    place = 0
    for match in _HIDDEN.finditer(plain):
        parts += (escape(plain[place : match.start()]), _named(match[0]))
        place = match.end()
    parts.append(escape(plain[place:]))
    return Markup("".join(parts) + ("…" if is_cut else ""))  # noqa: S704 - each part is escaped


def _named(character: str) -> str:
    return f'<span class="hidden">U+{ord(character):04X}</span>'


def shown_payload(body: bytes, content_type: str, *, whole: bool = False) -> Shown:
    """Return a payload as text: JSON laid out, text as it is, anything else as bytes in hexadecimal."""
    if codec.is_json(content_type) or codec.is_text(content_type):
        try:
            text = body.decode()
        except UnicodeDecodeError:
            return _hexadecimal(body, whole)
        kind: Literal["json", "text"] = "text"
        if codec.is_json(content_type):
            kind = "json"
            text = laid_out(text) if len(text) <= INDENTED else text
        is_cut = not whole and len(text) > CUT
        return Shown(kind, text[:CUT] if is_cut else text, is_cut)
    return _hexadecimal(body, whole)


def beginning_of(body: bytes, content_type: str, size: int) -> str:
    """Return one line of a payload, of which the first bytes are given."""
    if not (codec.is_json(content_type) or codec.is_text(content_type)):
        return f"{size:,} bytes"
    text = body.decode(errors="ignore")
    return text + ("…" if len(body) < size else "")


def laid_out(text: str) -> str:
    """Return JSON with a line per value; numbers and strings stay as they are written."""
    lines: list[str] = []
    line, depth, before = "", 0, ""
    for token in _TOKENS.findall(text):
        if token in "}]":
            depth -= 1
            if before not in ("{", "["):
                lines.append(line)
                line = "  " * depth
        elif before in ("{", "[") or (before == "," and token != ","):
            lines.append(line)
            line = "  " * depth
        line += token + (" " if token == ":" else "")
        if token in "{[":
            depth += 1
            if depth > DEEPEST:
                return text
        before = token if token in "{}[],:" else ""
    return "\n".join([*lines, line])


def _hexadecimal(body: bytes, whole: bool) -> Shown:
    """As `xxd` shows it: place, sixteen bytes, and those of them that are ASCII."""
    part = body if whole else body[:CUT_BYTES]
    lines = []
    for place in range(0, len(part), 16):
        row = part[place : place + 16]
        letters = "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in row)
        lines.append(f"{place:08x}  {row.hex(' '):<47}  {letters}")
    return Shown("bytes", "\n".join(lines), len(part) < len(body))
