"""Metadata: what a publisher attaches to an event beside its payload, as the text of a JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eventbus_fastapi.codec.json import encode_json
from eventbus_fastapi.errors import InvalidEvent, InvalidPayload, quote

MAX_METADATA = 16_384
"""Largest metadata, bytes of JSON."""
MAX_METADATA_KEYS = 64
MAX_METADATA_DEPTH = 32
RESERVED_METADATA = frozenset({"timestamp", "content_type"})
"""Keys that belong to the bus: it sets them on the wire."""


def encode_metadata(metadata: Mapping[str, Any] | None) -> str | None:
    """Return metadata as the text of a JSON object; None for none and for an empty mapping.

    Raises:
        InvalidEvent: it is not a mapping from str to JSON values, has more than 64 keys or 16 KiB, or has a key that
            the bus sets (`timestamp`, `content_type`).
    """
    if metadata is None:
        return None
    if not isinstance(metadata, Mapping):
        raise InvalidEvent(f"metadata must be a mapping, got {type(metadata).__name__}")
    if len(metadata) > MAX_METADATA_KEYS:
        raise InvalidEvent(f"metadata has {len(metadata):,} keys, limit is {MAX_METADATA_KEYS}")
    for key in metadata:
        if not isinstance(key, str):
            raise InvalidEvent(f"metadata keys must be str, got {type(key).__name__}")
        if key in RESERVED_METADATA:
            raise InvalidEvent(f"metadata key {quote(key)} is reserved: the bus sets it")
    if not metadata:
        return None
    try:
        body = encode_json(dict(metadata), max_depth=MAX_METADATA_DEPTH, what="metadata")
    except InvalidPayload as exc:
        raise InvalidEvent(str(exc)) from exc
    if len(body) > MAX_METADATA:
        raise InvalidEvent(f"metadata is {len(body):,} bytes, limit is {MAX_METADATA:,}")
    return body.decode()
