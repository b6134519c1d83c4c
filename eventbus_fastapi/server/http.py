"""What the bus answers over HTTP: publishing, history and health.

Requests are read as frames are, by `protocol`, so an event object means the same here and on the WebSocket. Answers are
written as text, because events hold theirs already. Errors are raised; `problems` answers them. No endpoint knows its
path: `router` mounts them.
"""

# Annotations are evaluated here: FastAPI reads those of the endpoints.
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from fastapi import Path, Query, Request, Response
from pydantic_core import to_json

from eventbus_fastapi.errors import (
    BadFrame,
    BatchTooLarge,
    EventBusError,
    InvalidEvent,
    InvalidRequest,
    NotReady,
)
from eventbus_fastapi.events import Draft, Receipt
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.protocol import fields
from eventbus_fastapi.protocol.commands import FRAME_DEPTH, MAX_PATTERNS
from eventbus_fastapi.protocol.events import event_object, parse_draft
from eventbus_fastapi.server.bodies import json_answer, parse_body, read_body
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.topics import check_pattern

MAX_LIMIT = 1_000
"""Most events of one page."""
DEFAULT_LIMIT = 100

Patterns = Annotated[
    Sequence[str],
    Query(
        alias="pattern",
        max_length=MAX_PATTERNS,
        description="Events that match any of these; repeatable. `*` is exactly one segment, `#` zero or more.",
        openapi_examples={"all": {"value": ["#"]}, "one": {"value": ["user.*"]}},
    ),
]
After = Annotated[
    int,
    Query(
        ge=0,
        le=fields.MAX_SEQ,
        description="Events with a greater `seq` only.",
        openapi_examples={"start": {"value": 0}, "later": {"value": 17}},
    ),
]
Limit = Annotated[
    int, Query(ge=1, le=MAX_LIMIT, description="Most events to answer.", openapi_examples={"ten": {"value": 10}})
]
Seq = Annotated[
    int,
    Path(ge=1, le=fields.MAX_SEQ, description="Place in the log.", openapi_examples={"first": {"value": 1}}),
]


class Endpoints:
    """The HTTP endpoints of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def publish(self, request: Request) -> Response:
        """Publish one event, or a list of events all or none.

        When this is answered, the events are committed in the database. Publishing an event again with the same
        `message_id` stores nothing and answers the first one's `seq`: so after a lost answer, send it again.
        """
        published = _parse(await read_body(request, self._node.settings.max_body), self._node.settings)
        if published.is_live:
            receipts = [self._node.publish_live(draft) for draft in published.drafts]
        else:
            receipts = await self._node.submit(published.drafts)
        answers = [_answer(receipt, published.is_live) for receipt in receipts]
        return json_answer(to_json(answers if published.is_list else answers[0]), status=201)

    async def list_events(
        self,
        patterns: Patterns = ("#",),
        after: After = 0,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Response:
        """Read the log: events that match any of the patterns, oldest first, a page at a time."""
        wanted = tuple(dict.fromkeys(check_pattern(pattern) for pattern in patterns))
        page = await self._node.history(wanted, after, limit)
        events = ",".join(event_object(message) for message in page.messages)
        following = "null" if page.next is None else page.next
        return json_answer(
            f'{{"events":[{events}],"next":{following},"head":{page.head},"first_seq":{page.first_seq}}}'
        )

    async def get_event(self, seq: Seq) -> Response:
        """Read one event, and whether a reader has acknowledged it."""
        stored = await self._node.get(seq)
        return json_answer(f'{event_object(stored.message)[:-1]},"status":"{stored.status}"}}')

    async def healthz(self) -> Response:
        """Tell that the process runs. Says nothing about the database: see `/readyz`."""
        return json_answer(b'{"status":"ok"}')

    async def readyz(self) -> Response:
        """Tell whether the database answers, the schema is current and the listener is alive."""
        if problems := await self._node.problems():
            raise NotReady(problems)
        return json_answer(b'{"status":"ready"}')


class _Published(NamedTuple):
    """What a body of POST /publish asks for."""

    drafts: Sequence[Draft]
    is_live: bool
    """True: for live subscriptions only (`durable` is false)."""
    is_list: bool


def _parse(body: bytes, limits: Settings) -> _Published:
    parsed = parse_body(body, limits.max_depth + FRAME_DEPTH)
    if type(parsed) is not list:
        draft, is_live = _parse_event(parsed, limits)
        return _Published([draft], is_live, is_list=False)
    if not parsed:
        raise InvalidRequest("expected an event or a list of at least one, got an empty list")
    if len(parsed) > limits.max_batch:
        raise BatchTooLarge(len(parsed), limits.max_batch)
    read = [_parse_listed(event, place, limits) for place, event in enumerate(parsed)]
    live = {is_live for _, is_live in read}
    if len(live) > 1:
        raise InvalidRequest("field 'durable': expected the same value in all events of a list, got both")
    return _Published([draft for draft, _ in read], live.pop(), is_list=True)


def _parse_listed(event: object, place: int, limits: Settings) -> tuple[Draft, bool]:
    try:
        return _parse_event(event, limits)
    except EventBusError as exc:
        exc.args = (f"events[{place}]: {exc}",)
        raise


def _parse_event(event: object, limits: Settings) -> tuple[Draft, bool]:
    """Return the draft of an event object, and whether it is for live subscriptions only."""
    if not isinstance(event, Mapping):
        raise InvalidRequest(f"expected an event object, got {fields.shown(event)}")
    try:
        draft, is_live = parse_draft(event, limits), fields.boolean(event, "durable") is False
    except BadFrame as exc:
        raise InvalidRequest(str(exc)) from exc
    if is_live and draft.is_scheduled:
        raise InvalidEvent("an event with durable=false cannot wait: delay needs storage")
    if is_live and draft.unique is not None:
        raise InvalidEvent("an event with durable=false cannot be unique: unique needs storage")
    return draft, is_live


def _answer(receipt: Receipt, is_live: bool) -> dict[str, Any]:
    answer = {"seq": receipt.seq, "message_id": receipt.message_id, "duplicate": receipt.duplicate}
    return {**answer, "durable": False} if is_live else answer
