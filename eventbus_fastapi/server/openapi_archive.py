"""What OpenAPI says of the routes that show the archive; see `openapi`."""

from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from eventbus_fastapi.errors import EventBusError, InvalidRequest, NotFound
from eventbus_fastapi.server.openapi import EVENT, MESSAGE_ID, SEQ, STORE_PROBLEMS, LoggedEvent, examples_of
from eventbus_fastapi.server.openapi_groups import ERROR, GROUP, LIST_DEAD_PROBLEMS, AttemptError

_ENDED: dict[str, JsonValue] = {
    "outcome": "acked",
    "attempts": 3,
    "duration": 0.25,
    "node": "web-1-4711-0a1b2c3d",
    "finished_at": "2026-01-01T00:00:00.000000Z",
}
_ENTRY: dict[str, JsonValue] = {
    "id": 1,
    "group": GROUP,
    "seq": SEQ,
    "message_id": MESSAGE_ID,
    "topic": "user.created",
    "key": "user-1",
    **_ENDED,
    "tags": ["welcome"],
    "error": ERROR,
}

Outcome = Literal["acked", "discarded", "dead"]
_ATTEMPTS = "Attempts that counted, the last one too."
_DURATION = "How long the last attempt took, seconds; `null`: nobody knows."


class ArchiveEntryObject(BaseModel):
    """How an event has ended in a group."""

    id: int = Field(description="Counted over all groups.")
    group: str
    seq: int
    message_id: UUID
    topic: str
    key: str | None
    outcome: Outcome
    attempts: int = Field(description=_ATTEMPTS)
    duration: float | None = Field(description=_DURATION)
    node: str = Field(description="Where the last attempt was made.")
    finished_at: str = Field(description="RFC 3339.")
    tags: list[str]
    error: AttemptError | None = Field(description="What went wrong last; of one that was discarded, the reason.")


class ArchivePageObject(BaseModel):
    """How events have ended, in the order in which that was written."""

    model_config = ConfigDict(json_schema_extra=examples_of({"archive": [_ENTRY], "next": 1}))

    archive: list[ArchiveEntryObject]
    next: int | None = Field(description="`after` of the next page. `null`: there are no more.")


class ShownEnding(LoggedEvent):
    """How an event has ended: the event, and all that went wrong."""

    model_config = ConfigDict(
        json_schema_extra=examples_of(
            {
                **EVENT,
                "id": 1,
                "group": GROUP,
                **_ENDED,
                "errors": [{**ERROR, "traceback": "Traceback (most recent call last): …"}],
            }
        )
    )

    id: int
    group: str
    outcome: Outcome
    attempts: int = Field(description=_ATTEMPTS)
    duration: float | None = Field(description=_DURATION)
    node: str
    finished_at: str
    errors: list[AttemptError] = Field(description="Oldest first.")


LIST_PROBLEMS: tuple[EventBusError, ...] = LIST_DEAD_PROBLEMS
GET_PROBLEMS: tuple[EventBusError, ...] = (
    NotFound("nothing in the archive has the id 17"),
    InvalidRequest("path parameter 'id': Input should be greater than or equal to 1, got '0'"),
    *STORE_PROBLEMS,
)
