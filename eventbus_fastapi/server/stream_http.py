"""`GET /events/stream`: what a request for a stream may say. All of it is decided before the stream begins."""

# Annotations are evaluated here: FastAPI reads those of the endpoints.
from typing import Annotated

from fastapi import Header, Query, Request, Response

from eventbus_fastapi.auth import Gate
from eventbus_fastapi.errors import InvalidRequest, quote
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.protocol import fields, schemas
from eventbus_fastapi.protocol.commands import Subscribe
from eventbus_fastapi.server.admission import Admission
from eventbus_fastapi.server.cloudevents_http import wants_cloudevents
from eventbus_fastapi.server.dialects import ServerSent
from eventbus_fastapi.server.guard import Caller
from eventbus_fastapi.server.http import Patterns, permitted
from eventbus_fastapi.server.query import seq_of, start_of
from eventbus_fastapi.server.sse import EventStream
from eventbus_fastapi.settings import Overflow

_DIGITS = "^[0-9]{1,15}$"

After = Annotated[
    int | None,
    Query(
        ge=0,
        le=fields.MAX_SEQ,
        description="Begin after this `seq`.",
        openapi_examples={"all": {"value": 0}, "later": {"value": 17}},
    ),
]
From = Annotated[
    str | None,
    Query(
        alias="from",
        description="Where to begin: `now`, `earliest`, a `seq` (the same as `after`), or an RFC 3339 time: the first "
        "event that entered the log at or after it. Absent: `now`, unless there is `after`.",
        openapi_examples={
            "earliest": {"value": "earliest"},
            "time": {"value": "2026-01-01T00:00:00Z"},
        },
        json_schema_extra={"anyOf": [{"enum": ["now", "earliest"]}, {"pattern": _DIGITS}, schemas.TIME]},
    ),
]
WhenBehind = Annotated[
    Overflow | None,
    Query(
        description="What happens when the reader falls too far behind; absent: as the server is set.",
        openapi_examples={"newest": {"value": "drop_oldest"}},
    ),
]
Buffer = Annotated[
    int | None,
    Query(
        ge=1,
        le=fields.MAX_ID,
        description="How many events that is, at most as many as the server allows.",
        openapi_examples={"hundred": {"value": 100}},
    ),
]
LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        description="The last id that the client has seen: the stream goes on after it, wherever it began. Browsers "
        "send it by themselves when they come back.",
        openapi_examples={"later": {"value": "17"}},
        json_schema_extra={"pattern": f"{_DIGITS}|^$"},
    ),
]


class StreamEndpoints:
    """The endpoint of one node that streams events."""

    def __init__(self, node: Node, gate: Gate, admission: Admission) -> None:
        self._node = node
        self._gate = gate
        self._admission = admission

    async def stream_events(
        self,
        request: Request,
        caller: Caller,
        patterns: Patterns = (),
        after: After = None,
        start: From = None,
        overflow: WhenBehind = None,
        buffer: Buffer = None,
        last_event_id: LastEventId = None,
    ) -> Response:
        """Follow the log: every event that matches any of the patterns, as server-sent events, without end.

        Without a pattern: all that the caller may read. They are CloudEvents where `Accept` asks for those.

        A browser reads it with `new EventSource("/events/stream?pattern=user.*")`, and resumes by itself.
        """
        wanted = Subscribe(
            permitted(patterns, caller),
            start=start_of(after, start),
            overflow=overflow,
            buffer=buffer,
        )
        resumes_after = _parse_id(last_event_id)
        source = self._node.settings.cloudevents_source if wants_cloudevents(request) else None
        return EventStream(
            self._node, self._gate, self._admission, request, wanted, ServerSent(source), resumes_after=resumes_after
        )


def _parse_id(given: str | None) -> int | None:
    """Read a `Last-Event-ID`; an empty one is none."""
    if not given:
        return None
    seq = seq_of(given)
    if seq is None:
        raise InvalidRequest(
            f"header 'Last-Event-ID': expected an integer from 0 to {fields.MAX_SEQ}, got {quote(given)}"
        )
    return seq
