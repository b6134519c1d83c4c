"""Which topics a set of patterns matches, remembered for as long as somebody reads history with it."""

from __future__ import annotations

from collections.abc import Sequence

from eventbus_fastapi.topics import PatternIndex

TOPICS_CACHED = 10_000


class Matcher:
    def __init__(self, patterns: Sequence[str]) -> None:
        self._index: PatternIndex[bool] = PatternIndex()
        for pattern in patterns:
            self._index.add(pattern, True)
        self._matches: dict[str, bool] = {}

    def matches(self, topic: str) -> bool:
        """Return whether any of the patterns matches a topic."""
        found = self._matches.get(topic)
        if found is None:
            if len(self._matches) >= TOPICS_CACHED:
                self.forget()
            found = self._matches[topic] = bool(self._index.match(topic))
        return found

    def forget(self) -> None:
        """Give the memory back."""
        self._matches.clear()
