"""What the bus answers over HTTP about the archive: how events have ended in the groups that keep it."""

# Annotations are evaluated here: FastAPI reads those of the endpoints.
from typing import Annotated

from fastapi import Path, Query, Response
from pydantic_core import to_json

from eventbus_fastapi.pipeline.filters import archive_filter
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.protocol import fields, schemas
from eventbus_fastapi.server.bodies import json_answer
from eventbus_fastapi.server.group_http import AfterId, Error, OfGroup, Patterns, Tags, query_time
from eventbus_fastapi.server.group_objects import archived_object, ending_object
from eventbus_fastapi.server.http import DEFAULT_LIMIT, Limit
from eventbus_fastapi.store.group import Ended

EndingId = Annotated[
    int, Path(ge=1, le=fields.MAX_SEQ, description="`id` in the list.", openapi_examples={"first": {"value": 1}})
]
Outcome = Annotated[
    Ended | None,
    Query(description="Those that ended so; absent: however.", openapi_examples={"dead": {"value": "dead"}}),
]
FinishedAfter = Annotated[
    str | None,
    Query(
        description="Those that ended at this time or later (RFC 3339).",
        openapi_examples={"time": {"value": "2026-01-01T00:00:00Z"}},
        json_schema_extra=schemas.TIME,
    ),
]
FinishedBefore = Annotated[
    str | None,
    Query(
        description="Those that ended before this time (RFC 3339).",
        openapi_examples={"time": {"value": "2026-01-01T00:00:00Z"}},
        json_schema_extra=schemas.TIME,
    ),
]


class ArchiveEndpoints:
    """The HTTP endpoints of one node that show the archive."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def list_archive(
        self,
        group: OfGroup = None,
        patterns: Patterns = (),
        outcome: Outcome = None,
        error: Error = None,
        finished_after: FinishedAfter = None,
        finished_before: FinishedBefore = None,
        tags: Tags = (),
        after: AfterId = 0,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Response:
        """List how events have ended, in the order in which that was written, without payloads.

        What is rare may give fewer than `limit`, or none, with a `next` to go on after: one request looks at a part.
        """
        wanted = archive_filter(
            *patterns,
            outcome=outcome,
            error=error,
            finished_after=query_time(finished_after, "finished_after"),
            finished_before=query_time(finished_before, "finished_before"),
            tags=tags,
        )
        page = await self._node.steward.archive(group, wanted, after=after, limit=limit)
        endings = [ending_object(name, entry) for name, entry in page.entries]
        return json_answer(to_json({"archive": endings, "next": page.next}))

    async def get_archived(self, id: EndingId) -> Response:  # noqa: A002 - its name in the path
        """Show how an event has ended: the event with its payload, and all that went wrong."""
        return json_answer(archived_object(*await self._node.steward.archived(id)))
