"""Dialects: how the items of a subscription are written for one kind of reader.

A feed decides what is sent and when; a dialect knows the words for it, and which of them it has none for.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

from fastapi.sse import format_sse_event
from pydantic_core import to_json

from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.channel import CaughtUp, Gap
from eventbus_fastapi.protocol import frames
from eventbus_fastapi.protocol.cloudevents import cloudevent_object, gap_event
from eventbus_fastapi.protocol.events import Sub, event_frame, event_object

MAX_SHARED_SUB = 4
"""Texts are shared between connections for the subscription ids 1 to this, which most clients use. Ids are chosen by
clients: sharing them all would let a client fill the memory with texts that nobody shares."""


class Dialect(Protocol):
    @property
    def is_joined(self) -> bool:
        """True if many events may be one text. False: each is a text of its own, and where history ends is not said."""

    @property
    def sharing(self) -> Hashable | None:
        """Readers for whom this is the same get the same text of a batch, made once; None: nobody does."""

    def events(self, messages: Sequence[Message]) -> str:
        """Return the text of one or more events."""

    def gap(self, gap: Gap) -> str:
        """Return what says that events will not come; empty: there is no word for it."""

    def caught_up(self, caught_up: CaughtUp) -> str:
        """Return what says that live events follow."""

    def join(self, texts: Sequence[str]) -> str:
        """Return one text for one or more."""


class Plain:
    """The frames of prk_eventbus: nothing but events."""

    is_joined = False
    sharing = None

    def events(self, messages: Sequence[Message]) -> str:
        [message] = messages
        return event_object(message)

    def gap(self, gap: Gap) -> str:
        return ""

    def caught_up(self, caught_up: CaughtUp) -> str:
        return ""

    def join(self, texts: Sequence[str]) -> str:
        return "".join(texts)


class CloudEvents(Plain):
    """`cloudevents.json`: each message is one CloudEvent. `source` is that of the bus."""

    def __init__(self, source: str) -> None:
        self._source = source

    def events(self, messages: Sequence[Message]) -> str:
        [message] = messages
        return cloudevent_object(message, self._source)

    def gap(self, gap: Gap) -> str:
        return gap_event(*gap, self._source)


class V1:
    """`eventbus.v1`: typed frames, joined to arrays, each naming its subscription."""

    __slots__ = ("_sub", "sharing")

    is_joined = True

    def __init__(self, sub: Sub) -> None:
        self._sub = sub
        self.sharing = ("v1", sub) if type(sub) is int and 1 <= sub <= MAX_SHARED_SUB else None

    def events(self, messages: Sequence[Message]) -> str:
        return event_frame(messages, self._sub)

    def gap(self, gap: Gap) -> str:
        return frames.server_frame(frames.Gap(self._sub, *gap))

    def caught_up(self, caught_up: CaughtUp) -> str:
        return frames.server_frame(frames.CaughtUp(self._sub, *caught_up))

    def join(self, texts: Sequence[str]) -> str:
        return frames.joined(texts)


class ServerSent:
    """Server-sent events. Those of the log have no `event:`, so that `onmessage` gets them and nothing else.

    Their `id:` is the seq, from which a browser resumes; what was never stored has none, and neither has what the bus
    says for itself. That has a name.
    """

    is_joined = True

    def __init__(self, source: str | None = None) -> None:
        """`source`: events are CloudEvents, and this is that of the bus; None: the objects of the bus's own."""
        self._source = source
        self.sharing = "sse" if source is None else "sse-cloudevents"

    def events(self, messages: Sequence[Message]) -> str:
        return "".join([self._event(message) for message in messages])

    def gap(self, gap: Gap) -> str:
        return said("gap", **gap._asdict())

    def caught_up(self, caught_up: CaughtUp) -> str:
        return said("caught_up", **caught_up._asdict())

    def join(self, texts: Sequence[str]) -> str:
        return "".join(texts)

    def _event(self, message: Message) -> str:
        text = event_object(message) if self._source is None else cloudevent_object(message, self._source)
        if "\n" in text or "\r" in text:  # between the tokens of JSON that was stored as it came
            text = text.replace("\r", " ").replace("\n", " ")
        return f"id: {message.seq}\ndata: {text}\n\n" if message.is_durable else f"data: {text}\n\n"


def said(name: str, *, retry: int | None = None, **members: object) -> str:
    """Return what the bus says for itself on a stream. `retry`: milliseconds after which the client comes back."""
    return format_sse_event(event=name, data_str=to_json(members).decode(), retry=retry).decode()
