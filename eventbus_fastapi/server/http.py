"""What the bus answers over HTTP: publishing, history and health.

Requests are read as frames are, by `protocol`, so an event object means the same here and on the WebSocket. Answers are
written as text, because events hold theirs already. Errors are raised; `problems` answers them. No endpoint knows its
path: `router` mounts them.
"""

# Annotations are evaluated here: FastAPI reads those of the endpoints.
import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Path, Query, Request, Response
from pydantic import WithJsonSchema
from pydantic_core import to_json

from eventbus_fastapi.errors import (
    NotFound,
    NotReady,
    PublishTooFast,
)
from eventbus_fastapi.events import Receipt
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.protocol import fields, schemas
from eventbus_fastapi.protocol.commands import MAX_PATTERNS
from eventbus_fastapi.protocol.events import event_object
from eventbus_fastapi.server.bodies import json_answer
from eventbus_fastapi.server.cloudevents_http import cloudevent_answer, cloudevents_page, wants_cloudevents
from eventbus_fastapi.server.guard import Caller, counted_as, known_as
from eventbus_fastapi.server.idempotency import publish_once
from eventbus_fastapi.server.publish_rate import PublishRate
from eventbus_fastapi.server.published import read_published
from eventbus_fastapi.topics import check_pattern

MAX_LIMIT = 1_000
"""Most events of one page."""
DEFAULT_LIMIT = 100
REFUSED_AFTER = 0.5
"""Seconds after which a client is told that it publishes too fast: less than it has to wait then."""

Patterns = Annotated[
    Sequence[Annotated[str, WithJsonSchema(schemas.PATTERN)]],
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

    def __init__(self, node: Node, publish_rate: PublishRate) -> None:
        self._node = node
        self._publish_rate = publish_rate

    async def publish(self, request: Request, caller: Caller) -> Response:
        """Publish one event, or a list of events all or none.

        When this is answered, the events are committed in the database. Publishing an event again with the same
        `message_id`, `Idempotency-Key`, or `source` and `id` of a CloudEvent, stores nothing and answers the first
        one's `seq`: so after a lost answer, send it again.
        """
        counted = counted_as(caller, request)
        await self._keep_pace(counted)
        published = await read_published(request, self._node, whose=known_as(caller))
        for draft in published.drafts:
            caller.require_publish(draft.topic)
        self._publish_rate.take(counted, len(published.drafts))
        if published.key is None:
            receipts = await self._node.publish(published.drafts, is_live=published.is_live)
        else:
            receipts = await publish_once(self._node, published.drafts, published.key, is_list=published.is_list)
        answers = [_answer(receipt, published.is_live) for receipt in receipts]
        return json_answer(to_json(answers if published.is_list else answers[0]), status=201)

    async def _keep_pace(self, counted: str) -> None:
        """Refuse who publishes too fast, not at once: else a flood of refusals takes as much from others."""
        try:
            self._publish_rate.check(counted)
        except PublishTooFast:
            await asyncio.sleep(REFUSED_AFTER)
            raise

    async def list_events(
        self,
        request: Request,
        caller: Caller,
        patterns: Patterns = (),
        after: After = 0,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Response:
        """Read the log: events that match any of the patterns, oldest first, a page at a time.

        Without a pattern: all that the caller may read.
        """
        page = await self._node.history(permitted(patterns, caller), after, limit)
        if wants_cloudevents(request):
            return cloudevents_page(request, page, self._node.settings.cloudevents_source)
        events = ",".join(event_object(message) for message in page.messages)
        following = "null" if page.next is None else page.next
        return json_answer(
            f'{{"events":[{events}],"next":{following},"head":{page.head},"first_seq":{page.first_seq}}}'
        )

    async def get_event(self, request: Request, seq: Seq, caller: Caller) -> Response:
        """Read one event, and whether a reader has acknowledged it."""
        stored = await self._node.get(seq)
        if not caller.may_read(stored.message.topic):
            raise NotFound(f"no event at seq {seq}")  # as if it were not there
        if wants_cloudevents(request):
            return cloudevent_answer(stored.message, self._node.settings.cloudevents_source)
        return json_answer(f'{event_object(stored.message)[:-1]},"status":"{stored.status}"}}')

    async def healthz(self) -> Response:
        """Tell that the process runs. Says nothing about the database: see `/readyz`."""
        return json_answer(b'{"status":"ok"}')

    async def readyz(self) -> Response:
        """Tell whether the database answers, the schema is current and the listener is alive."""
        if problems := await self._node.problems():
            raise NotReady(problems)
        if remarks := self._node.remarks:
            return json_answer(to_json({"status": "ready", "remarks": remarks}))
        return json_answer(b'{"status":"ready"}')


def permitted(patterns: Sequence[str], caller: Caller) -> tuple[str, ...]:
    """Return the patterns of a request that reads; without any, those of all that the caller may read.

    Raises:
        InvalidPattern, Forbidden: one does not follow the grammar, or goes beyond what is granted.
    """
    wanted = tuple(dict.fromkeys(check_pattern(pattern) for pattern in patterns)) or caller.readable
    caller.require_subscribe(*wanted)
    return wanted


def _answer(receipt: Receipt, is_live: bool) -> dict[str, Any]:
    answer = {"seq": receipt.seq, "message_id": receipt.message_id, "duplicate": receipt.duplicate}
    return {**answer, "durable": False} if is_live else answer
