"""What the bus answers over HTTP about queues and who serves them: how they are; pause, resume, scale."""

# Annotations are evaluated here: FastAPI reads those of the endpoints.
from typing import Annotated

from fastapi import Path, Request, Response
from pydantic_core import to_json

from eventbus_fastapi.errors import BadFrame, InvalidRequest
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.protocol import fields, schemas
from eventbus_fastapi.server.bodies import json_answer, read_object
from eventbus_fastapi.server.queue_objects import queue_object, worker_object
from eventbus_fastapi.settings import MOST_WORKERS

Name = Annotated[
    str,
    Path(
        description="Name of the queue.",
        openapi_examples={"email": {"value": "email"}},
        json_schema_extra=schemas.NAME,
    ),
]


class QueueEndpoints:
    """The HTTP endpoints of one node that look after queues."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def list_queues(self) -> Response:
        """Tell how all queues are that some process serves, or about which operators have said something."""
        return json_answer(to_json({"queues": [queue_object(each) for each in await self._node.queues.queues()]}))

    async def pause_queue(self, name: Name, request: Request) -> Response:
        """Have nothing more taken for a queue, in any process, within about a second. What runs goes on."""
        await self._body(request)
        await self._node.queues.pause(name)
        return await self._queue(name)

    async def resume_queue(self, name: Name, request: Request) -> Response:
        """End the pause of a queue."""
        await self._body(request)
        await self._node.queues.resume(name)
        return await self._queue(name)

    async def scale_queue(self, name: Name, request: Request) -> Response:
        """Have each process that serves a queue handle so many events at the same time; `null`: as its program says.

        A process that has more running lets them end.
        """
        body = await self._body(request, "workers")
        if "workers" not in body:
            raise InvalidRequest("field 'workers' is missing")
        try:
            workers = fields.integer(body, "workers", 1, MOST_WORKERS)
        except BadFrame as exc:
            raise InvalidRequest(str(exc)) from exc
        await self._node.queues.scale(name, workers)
        return await self._queue(name)

    async def list_workers(self) -> Response:
        """Tell which processes serve queues, and when each was last seen."""
        return json_answer(to_json({"workers": [worker_object(each) for each in await self._node.queues.workers()]}))

    # --- parts ---

    async def _queue(self, name: str) -> Response:
        return json_answer(to_json(queue_object(await self._node.queues.queue(name))))

    async def _body(self, request: Request, *known: str) -> fields.Object:
        return await read_object(request, self._node.settings, known, max_depth=1, is_optional=not known)
