"""A parcel: an event as a broker gets it: its body, which is the payload as published, and its headers.

They are those of `headers`, and these, which say how it was relayed:

    eventbus-attempt     1; more: an earlier copy may have arrived, whose confirm was lost
    eventbus-timestamp   when it entered the log, RFC 3339
    eventbus-relay       the name of the relay, percent-encoded
    eventbus-epoch       of the log: seqs of another one mean something else
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import quote as percent_encode

from eventbus_fastapi.events import Message
from eventbus_fastapi.protocol.cloudevents import STRUCTURED, cloudevent_attributes, cloudevent_object
from eventbus_fastapi.relay.headers import CONTENT_TYPE, headers_of
from eventbus_fastapi.relay.subject import SubjectTemplate

ATTEMPT = "eventbus-attempt"
TIMESTAMP = "eventbus-timestamp"
RELAY = "eventbus-relay"
EPOCH = "eventbus-epoch"
REACHED = "eventbus-reached"
"""Of a dead letter that was retried: the seq that the stream had reached before it. Only in a stream of the relay's."""

Form = Literal["binary", "structured"]
"""How an event is a CloudEvent: its attributes in headers, or all of it as JSON in the body."""


@dataclass(slots=True)
class Parcel:
    """See the module's docstring."""

    message: Message
    attempt: int
    is_revived: bool
    """Whether it is a dead letter that is tried again: those behind it may have gone before."""
    subject: str
    body: bytes
    headers: dict[str, str]


class Packer:
    """Makes parcels of events for one relay.

    Args:
        cloudevents: the form of CloudEvents; None: they are none.
        prefix: of the headers that have the attributes of a CloudEvent.
        source: of CloudEvents that have none of their own.
    """

    def __init__(
        self,
        template: SubjectTemplate,
        *,
        relay: str,
        epoch: str,
        cloudevents: Form | None = None,
        prefix: str = "ce-",
        source: str = "/eventbus",
    ) -> None:
        self._template = template
        self._always = {RELAY: written(relay), EPOCH: epoch}
        self._cloudevents = cloudevents
        self._prefix = prefix
        self._source = source

    def pack(self, message: Message, attempt: int, *, is_revived: bool = False) -> Parcel:
        headers = {
            **headers_of(message),
            ATTEMPT: str(attempt),
            TIMESTAMP: written_time(message.created_at),
            **self._always,
        }
        body = message.body
        if self._cloudevents == "structured":
            body = cloudevent_object(message, self._source).encode()
            headers[CONTENT_TYPE] = STRUCTURED
        elif self._cloudevents == "binary":
            for name, value in cloudevent_attributes(message, self._source).items():
                if name != "datacontenttype":
                    headers[self._prefix + name] = written(_text(value))
        return Parcel(message, attempt, is_revived, self._template.of(message), body, headers)


def written(text: str) -> str:
    """Return a text as a header has it: printable ASCII, else percent-encoded."""
    if text.isascii() and text.isprintable() and "%" not in text and text == text.strip():
        return text
    return percent_encode(text, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}").replace(" ", "%20")


def written_time(microseconds: int) -> str:
    seconds, rest = divmod(microseconds, 1_000_000)
    return f"{_written_second(seconds)}.{rest:06}Z"


@lru_cache(maxsize=8)
def _written_second(seconds: int) -> str:
    """Return a second as events that follow one another share it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
