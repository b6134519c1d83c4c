"""What the bus answers over HTTP about recurring events: what there is; declare, pause, resume, run now, delete."""

# Annotations are evaluated here: FastAPI reads those of the endpoints.
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Annotated, Any, cast, get_args

from fastapi import Path, Request, Response
from pydantic_core import to_json

from eventbus_fastapi.errors import BadFrame, InvalidRequest, RecurringNotFound
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.protocol import fields, schemas
from eventbus_fastapi.protocol.commands import FRAME_DEPTH
from eventbus_fastapi.protocol.events import parse_draft
from eventbus_fastapi.server.bodies import json_answer, read_object
from eventbus_fastapi.server.guard import Caller, counted_as
from eventbus_fastapi.server.publish_rate import PublishRate
from eventbus_fastapi.server.recurring_objects import recurring_object
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store.recurring import Missed

Name = Annotated[
    str,
    Path(
        description="Name of the recurring event.",
        openapi_examples={"report": {"value": "nightly-report"}},
        json_schema_extra=schemas.SEGMENT_NAME,
    ),
]

OF_EVENTS = {"topic", "payload", "payload_base64", "content_type", "key", "metadata", "ttl"}
OF_SCHEDULES = {"cron", "timezone", "missed"}


class RecurringEndpoints:
    """The HTTP endpoints of one node that look after recurring events."""

    def __init__(self, node: Node, publish_rate: PublishRate) -> None:
        self._node = node
        self._publish_rate = publish_rate

    async def list_recurring(self) -> Response:
        """List all recurring events, by name."""
        return json_answer(f'{{"recurring":[{",".join(map(recurring_object, await self._node.recurring.all()))}]}}')

    async def get_recurring(self, name: Name) -> Response:
        """Tell what a recurring event publishes, and when."""
        return json_answer(recurring_object(await self._node.recurring.get(name)))

    async def put_recurring(self, name: Name, request: Request) -> Response:
        """Make a recurring event, or have one become as given here; a pause stays.

        One that a program declares stays so until the program declares something else than before.
        """
        limits = self._node.settings
        known = OF_EVENTS | OF_SCHEDULES
        body = await read_object(request, limits, known, max_depth=limits.max_depth + FRAME_DEPTH)
        wanted = _read(body, limits)
        is_new = True
        with suppress(RecurringNotFound):
            await self._node.recurring.get(name)
            is_new = False
        event = await self._node.recurring.declare(name, **wanted)
        return json_answer(recurring_object(event), 201 if is_new else 200)

    async def pause_recurring(self, name: Name, request: Request) -> Response:
        """Publish nothing of a recurring event, on any node, until it is resumed."""
        await self._read_nothing(request)
        return json_answer(recurring_object(await self._node.recurring.pause(name)))

    async def resume_recurring(self, name: Name, request: Request) -> Response:
        """End the pause of a recurring event. Its next tick is the first after now."""
        await self._read_nothing(request)
        return json_answer(recurring_object(await self._node.recurring.resume(name)))

    async def run_recurring(self, name: Name, request: Request, caller: Caller) -> Response:
        """Publish one event of it now, also if it is paused. Its ticks stay as they are."""
        await self._read_nothing(request)
        self._publish_rate.take(counted_as(caller, request), 1)
        return json_answer(to_json((await self._node.recurring.run(name))._asdict()), 201)

    async def delete_recurring(self, name: Name) -> Response:
        """Forget a recurring event; answers how it was. A program that still declares it makes it anew at its start."""
        return json_answer(recurring_object(await self._node.recurring.delete(name)))

    async def _read_nothing(self, request: Request) -> None:
        await read_object(request, self._node.settings, (), max_depth=1, is_optional=True)


def _read(body: Mapping[str, Any], limits: Settings) -> dict[str, Any]:
    """Return the arguments of `Recurring.declare`."""
    try:
        cron = fields.required("cron", fields.string(body, "cron"))
        draft = parse_draft(body, limits)
        return {
            "cron": cron,
            "timezone": fields.string(body, "timezone") or "UTC",
            "missed": cast(Missed, fields.choice(body, "missed", get_args(Missed)) or "last"),
            "event": draft.topic,
            "payload": draft.payload,
            "content_type": draft.content_type,
            "key": draft.key,
            "metadata": fields.mapping(body, "metadata"),
            "ttl": None if draft.ttl is None else timedelta(microseconds=draft.ttl),
        }
    except BadFrame as exc:
        raise InvalidRequest(str(exc)) from exc
