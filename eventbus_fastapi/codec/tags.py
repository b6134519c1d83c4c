"""Tags: short words that a publisher attaches to an event, as the list `tags` of its metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from eventbus_fastapi.errors import InvalidEvent, quote

TAGS = "tags"
"""Their place in the metadata."""
MAX_TAGS = 20
MAX_TAG = 64
"""Longest tag, bytes."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def add_tags(metadata: Mapping[str, Any] | None, tags: Sequence[str]) -> Mapping[str, Any] | None:
    """Return metadata with tags in it; none add nothing.

    Raises:
        InvalidEvent: they are no list of at most 20 different words of 1 to 64 bytes without control characters, or
            the metadata has `tags` already.
    """
    checked = check_tags(tags)
    if metadata is None:
        return {TAGS: checked} if checked else None
    if not isinstance(metadata, Mapping):
        raise InvalidEvent(f"metadata must be a mapping, got {type(metadata).__name__}")
    if TAGS in metadata:
        raise InvalidEvent(f"give tags or metadata[{quote(TAGS)}], not both")
    return {**metadata, TAGS: checked} if checked else metadata


def check_tags(tags: object) -> list[str]:
    """Return tags as a list; see `add_tags`."""
    if not isinstance(tags, list | tuple):
        raise InvalidEvent(f"tags must be a list of str, got {type(tags).__name__}")
    if len(tags) > MAX_TAGS:
        raise InvalidEvent(f"an event has at most {MAX_TAGS} tags, got {len(tags):,}")
    checked = [check_tag(tag) for tag in tags]
    if len(set(checked)) < len(checked):
        twice = next(tag for tag in checked if checked.count(tag) > 1)
        raise InvalidEvent(f"tag {quote(twice)} is there twice")
    return checked


def check_tag(tag: object) -> str:
    """Return a tag.

    Raises:
        InvalidEvent: it is no str of 1 to 64 bytes without control characters.
    """
    if (why := _refusal(tag)) is not None:
        raise InvalidEvent(why)
    return str.__str__(tag)


def tags_of(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tags in metadata; none if its `tags` are something else."""
    tags = metadata.get(TAGS)
    if type(tags) is not list or len(tags) > MAX_TAGS or any(_refusal(tag) is not None for tag in tags):
        return ()
    return tuple(tags) if len(set(tags)) == len(tags) else ()


def _refusal(tag: object) -> str | None:
    """Say why this is no tag."""
    if not isinstance(tag, str):
        return f"a tag must be str, got {type(tag).__name__}"
    try:
        size = len(tag.encode())
    except UnicodeEncodeError:
        return f"tag {quote(tag)} has a lone surrogate"
    if not 1 <= size <= MAX_TAG:
        return f"a tag must be 1 to {MAX_TAG} bytes, got {size:,}"
    return f"tag {quote(tag)} has a control character" if _CONTROL.search(tag) else None
