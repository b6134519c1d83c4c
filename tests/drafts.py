"""Events as they come from the door, for tests of what lies behind it."""

from __future__ import annotations

from typing import Any

from eventbus_fastapi.events import Draft, make_draft


def draft(topic: str = "test.event", payload: Any = "hello", **options: Any) -> Draft:
    """Make a draft; `options` are those of `make_draft`."""
    return make_draft(topic, payload, **{"max_payload": 16_000_000, **options})


def drafts(count: int, topic: str = "test.event", **options: Any) -> list[Draft]:
    """Make drafts whose payloads are their numbers from 1."""
    return [draft(topic, number, **options) for number in range(1, count + 1)]
