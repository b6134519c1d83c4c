"""Spans: what tracing makes where somebody wants to see it. The only module that imports OpenTelemetry, so `tracing`
imports it when it is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    format_span_id,
    format_trace_id,
    get_current_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from eventbus_fastapi import codec
from eventbus_fastapi.codec.metadata import MAX_METADATA, MAX_METADATA_KEYS
from eventbus_fastapi.errors import InvalidPayload
from eventbus_fastapi.events import Draft, Message
from eventbus_fastapi.telemetry.tracing import TRACEPARENT, TRACESTATE

MAX_TRACESTATE = 512
"""Longest state that is passed on, characters; what W3C asks for at least."""
MAX_MEMBERS = 32
"""Most members of it, as W3C has it."""
MAX_LINKS = 100
"""Most contexts of a batch that its span refers to."""
SYSTEM = "eventbus"
FAILED = frozenset({"retried", "dead", "lost"})
"""Outcomes that a span shows as an error."""

Attributes = dict[str, str | int]

_propagator = TraceContextTextMapPropagator()


class Handling:
    """The span of one attempt, which is to learn how that ends."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def note(self, outcome: str, error: str | None = None) -> None:
        """Say how it has ended: the outcome, and the type of what was raised, if anything was."""
        self._span.set_attribute("eventbus.outcome", outcome)
        if outcome in FAILED:
            _fail(self._span, error or outcome)


class Delivering:
    """The span of a delivery to a client, from when it is sent until it is settled."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def end(self, outcome: str) -> None:
        """It has ended so. What comes later changes nothing."""
        if self._span.is_recording():
            Handling(self._span).note(outcome)
            self._span.end()


class Spans:
    """Makes the spans of events with a tracer."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    # --- publishing ---

    @contextmanager
    def publishing(self, drafts: Sequence[Draft], name: str = "") -> Iterator[Sequence[Draft]]:
        """Have a span while events are published, within the caller's trace; give the events with its context.

        `name` is the topic, if it is one of few: topics may be as many as users.
        """
        given = [context for draft in drafts[:MAX_LINKS] if (context := _context_of(draft.metadata)) is not None]
        links = [Link(get_current_span(context).get_span_context()) for context in given]
        called = f"publish {name}" if name else "publish"
        with self._span(called, kind=SpanKind.PRODUCER, attributes=_of_drafts(drafts), links=links):
            yield _with_context(drafts)

    # --- delivering and handling ---

    @contextmanager
    def handling(
        self, message: Message, *, group: str, attempt: int, patterns: Sequence[str], queue: str = ""
    ) -> Iterator[Handling]:
        """Have a span while an event is handled, within the event's trace."""
        attributes = _of_message("handle", message, group, attempt)
        attributes["messaging.operation.type"] = "process"
        if len(patterns) == 1:
            attributes["messaging.destination.template"] = patterns[0]
        if queue:
            attributes["eventbus.queue"] = queue
        called = f"handle {patterns[0] if len(patterns) == 1 else group}"
        context = _context_of(message.metadata_json)
        with self._span(called, kind=SpanKind.CONSUMER, attributes=attributes, context=context) as span:
            yield Handling(span)

    def delivering(self, message: Message, *, group: str, attempt: int) -> Delivering | None:
        """Begin a span for an event that is sent to a client, within the event's trace; None: it has no trace."""
        context = _context_of(message.metadata_json)
        if context is None:
            return None
        attributes = _of_message("deliver", message, group, attempt)
        return Delivering(
            self._tracer.start_span(f"deliver {group}", context=context, kind=SpanKind.INTERNAL, attributes=attributes)
        )

    @contextmanager
    def _span(self, called: str, **options: Any) -> Iterator[Span]:
        """Have a current span that fails by the type of what is raised, never by its message."""
        with self._tracer.start_as_current_span(
            called, record_exception=False, set_status_on_exception=False, **options
        ) as span:
            try:
                yield span
            except BaseException as exc:
                _fail(span, _name_of(exc))
                raise


def current_ids() -> tuple[str, str] | None:
    """Return the ids of the trace and the span that the caller is in; None: it is in none."""
    context = get_current_span().get_span_context()
    return (format_trace_id(context.trace_id), format_span_id(context.span_id)) if context.is_valid else None


def _fail(span: Span, error: str) -> None:
    """Show an error by its type: its message may hold what nobody else should see."""
    span.set_attribute("error.type", error)
    span.set_status(StatusCode.ERROR, error)


def _name_of(exc: BaseException) -> str:
    kind = type(exc)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _of_drafts(drafts: Sequence[Draft]) -> Attributes:
    attributes: Attributes = {
        "messaging.system": SYSTEM,
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
    }
    topics = {draft.topic for draft in drafts}
    if len(topics) == 1:
        attributes["messaging.destination.name"] = topics.pop()
    if len(drafts) == 1:
        attributes["messaging.message.id"] = str(drafts[0].message_id)
        attributes["messaging.message.body.size"] = len(drafts[0].payload)
    else:
        attributes["messaging.batch.message_count"] = len(drafts)
    return attributes


def _of_message(operation: str, message: Message, group: str, attempt: int) -> Attributes:
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.destination.name": message.topic,
        "messaging.consumer.group.name": group,
        "messaging.message.id": str(message.message_id),
        "messaging.message.body.size": len(message.body),
        "eventbus.seq": message.seq,
        "eventbus.attempt": attempt,
    }


# --- the context in the metadata ---


def _context_of(metadata: str | None) -> Context | None:
    """Return the context that an event's metadata holds; None: it holds none that can be read."""
    if metadata is None or f'"{TRACEPARENT}"' not in metadata:
        return None
    try:
        return _extract(codec.load_object(metadata))
    except InvalidPayload:  # foreign SQL may have written it
        return None


def _extract(metadata: Mapping[str, Any]) -> Context | None:
    parent, state = metadata.get(TRACEPARENT), metadata.get(TRACESTATE)
    if not isinstance(parent, str) or len(parent) > MAX_TRACESTATE:  # a client may write there what it likes
        return None
    carrier = {TRACEPARENT: parent}
    if isinstance(state, str) and _is_state(state):
        carrier[TRACESTATE] = state
    context = _propagator.extract(carrier)
    return context if get_current_span(context).get_span_context().is_valid else None


def _is_state(text: str) -> bool:
    """Whether the propagator takes it as it is. What it does not, it would log, in its publisher's words."""
    members = [member for member in _COMMA.split(text) if member]
    keys = {member.partition("=")[0] for member in members}
    is_bounded = len(text) <= MAX_TRACESTATE and len(members) <= MAX_MEMBERS
    return is_bounded and len(keys) == len(members) and all(_MEMBER.fullmatch(member) for member in members)


_COMMA = re.compile(r"[ \t]*,[ \t]*")
_MEMBER = re.compile(
    r"(?:[a-z][_0-9a-z*/-]{0,255}|[a-z0-9][_0-9a-z*/-]{0,240}@[a-z][_0-9a-z*/-]{0,13})"
    r"=[ -+\--<>-~]{0,255}[!-+\--<>-~][ \t]*"
)


def _with_context(drafts: Sequence[Draft]) -> Sequence[Draft]:
    """Return events with the context of the current span, except those that have one, or no room for it."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    if not carrier:
        return drafts
    if len(carrier.get(TRACESTATE, "")) > MAX_TRACESTATE:
        del carrier[TRACESTATE]
    alone = codec.encode_metadata(carrier)
    return [
        draft._replace(metadata=alone if draft.metadata is None else _joined(draft.metadata, carrier))
        for draft in drafts
    ]


def _joined(metadata: str, carrier: Mapping[str, str]) -> str:
    own = codec.load_object(metadata)
    if TRACEPARENT in own or TRACESTATE in own or len(own) + len(carrier) > MAX_METADATA_KEYS:
        return metadata
    joined = codec.encode_json({**own, **carrier}, what="metadata").decode()
    return joined if len(joined.encode()) <= MAX_METADATA else metadata
