"""The names that people give to groups, queues, rate limits and recurring events.

A name is also a place in a URL, an argument of a command and a word in a log, so it has no spaces, no control
characters and nothing that is not seen. Which characters those are is written down here: what Python takes for
printable differs from version to version, and nodes of different versions share the names.
"""

from __future__ import annotations

import re

MAX_NAME = 255
"""Longest name, bytes."""

UNSEEN = (
    r"\u0000-\u0020\u007f-\u00a0\u00ad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff"
    r"\ufff0-\ufffb\ufffe\uffff"
)
"""What no name has, for a class of a regular expression, in Python and in JSON Schema."""

_NAME = re.compile(rf"[^{UNSEEN}\ud800-\udfff\U000e0000-\U000e007f]+")
"""Lone surrogates and tags beside that, which the regular expressions of JSON Schema cannot name."""


def is_name(text: str) -> bool:
    """Say whether a text can be a name."""
    return len(text) <= MAX_NAME and _NAME.fullmatch(text) is not None and len(text.encode()) <= MAX_NAME
