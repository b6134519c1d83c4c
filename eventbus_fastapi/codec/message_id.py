"""Message ids: the UUIDs that make publishing idempotent."""

from __future__ import annotations

import os
import re
import time
from hashlib import sha256
from uuid import UUID

from eventbus_fastapi.errors import InvalidEvent, quote


def new_message_id() -> UUID:
    """Return a new UUIDv7 (RFC 9562, section 5.7): unix milliseconds, then 74 random bits from the operating system.

    Ids of the same millisecond are in no order.
    """
    milliseconds = time.time_ns() // 1_000_000
    # Not from `random`: a program that seeds it would repeat its ids, and lose events as duplicates.
    random_bits = int.from_bytes(os.urandom(10), "big")
    return UUID(int=milliseconds << 80 | random_bits & _V7_RANDOM | _V7)


_V7 = 0x7 << 76 | 0b10 << 62
"""Version and variant, in their places."""
_V7_RANDOM = 0xFFF << 64 | (1 << 62) - 1
"""The places of the random bits."""


def derived_message_id(*names: str) -> UUID:
    """Return the UUIDv8 (RFC 9562, section 5.8) of what has these names, the same whenever and wherever it is asked."""
    digest = sha256()
    for name in names:
        encoded = name.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return UUID(int=int.from_bytes(digest.digest()[:16], "big") & _CUSTOM | _V8)


_V8 = 0x8 << 76 | 0b10 << 62
"""Version and variant, in their places."""
_CUSTOM = (1 << 128) - 1 & ~(0xF << 76 | 0b11 << 62)
"""The places of all other bits."""


def check_message_id(value: object) -> UUID:
    """Return a message id from a UUID or its 36 characters.

    Raises:
        InvalidEvent: it is neither.
    """
    if isinstance(value, UUID):
        return value
    if isinstance(value, str) and _MESSAGE_ID.fullmatch(value):
        return UUID(value)
    raise InvalidEvent(f"message_id must be a UUID, like 0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3, got {quote(value)}")


_MESSAGE_ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
