"""Where a broker gets an event: its topic, or what a template makes of topic and key."""

from __future__ import annotations

from collections.abc import Callable
from string import Formatter

from eventbus_fastapi.errors import InvalidRelay, quote
from eventbus_fastapi.events import Message

FIELDS = ("topic", "key")
NO_KEY = "-"
"""What `{key}` is of an event without one."""


class SubjectTemplate:
    """Text with `{topic}` and `{key}` in it. `write_key` is how the broker has a key as a part of a subject.

    Raises:
        InvalidRelay: it has other fields, or cannot be read.
    """

    def __init__(self, text: str = "{topic}", *, write_key: Callable[[str], str] = str) -> None:
        self.text = text
        self._write_key = write_key
        try:
            parts = list(Formatter().parse(text))
        except ValueError as exc:
            raise InvalidRelay(f"subject template {quote(text)} cannot be read: {exc}") from exc
        for _, field, spec, conversion in parts:
            if field is None:
                continue
            if field not in FIELDS or spec or conversion:
                raise InvalidRelay(f"subject template {quote(text)}: expected {{topic}} or {{key}}, got {{{field}}}")
        self.fields = tuple(field for _, field, _, _ in parts if field is not None)
        self.literals = tuple(literal for literal, _, _, _ in parts)
        if not text:
            raise InvalidRelay("a subject template needs some text; '{topic}' is the default")
        self._is_topic = text == "{topic}"

    def of(self, message: Message) -> str:
        """Return the subject of an event."""
        if self._is_topic:
            return message.topic
        key = self._write_key(message.key) if message.key else NO_KEY
        return self.text.format(topic=message.topic, key=key)

    def fill(self, topic: str, key: str) -> str:
        """Return the template with other words in place of topic and key, such as wildcards of a broker."""
        return self.text.format(topic=topic, key=key)
