"""What OpenAPI says of the routes that look after queues and those who serve them; see `openapi`."""

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from eventbus_fastapi.errors import (
    BodyTooLarge,
    BodyTooSlow,
    EventBusError,
    InvalidQueue,
    InvalidRequest,
    UnsupportedMediaType,
)
from eventbus_fastapi.server.openapi import STORE_PROBLEMS, examples_of, json_body
from eventbus_fastapi.settings import MOST_WORKERS

_GROUPS: list[JsonValue] = ["shop.send_welcome"]
_QUEUE: dict[str, JsonValue] = {
    "name": "email",
    "workers": 10,
    "scaled": True,
    "paused": False,
    "processes": 2,
    "busy": 17,
    "groups": _GROUPS,
}
_WORKER: dict[str, JsonValue] = {
    "id": "web-1-4711-0a1b2c3d",
    "host": "web-1",
    "pid": 4711,
    "started_at": "2026-01-01T00:00:00.000000Z",
    "seen_at": "2026-01-01T01:00:00.000000Z",
    "age": 1.5,
    "alive": True,
    "queues": {"email": {"workers": 10, "busy": 8, "paused": False, "groups": _GROUPS}},
}


class QueueObject(BaseModel):
    """A queue: what operators have said about it, and how it is served."""

    model_config = ConfigDict(json_schema_extra=examples_of(_QUEUE))

    name: str
    workers: int | None = Field(
        description="Events that each process handles at the same time; `null`: no process serves it, and nobody has "
        "said how many."
    )
    scaled: bool = Field(description="Operators have said how many workers; else each process's program says it.")
    paused: bool
    processes: int = Field(description="Processes that serve it, as far as they were seen in the last seconds.")
    busy: int = Field(description="Events that they are handling.")
    groups: list[str] = Field(description="Groups that they serve.")


class QueueList(BaseModel):
    """All queues that some process serves, or about which operators have said something, by name."""

    model_config = ConfigDict(json_schema_extra=examples_of({"queues": [_QUEUE]}))

    queues: list[QueueObject]


class ServingObject(BaseModel):
    """How a process serves a queue."""

    workers: int = Field(description="Events that it handles at the same time.")
    busy: int = Field(description="Events that it is handling.")
    paused: bool
    groups: list[str]


class WorkerObject(BaseModel):
    """A process that serves queues."""

    model_config = ConfigDict(json_schema_extra=examples_of(_WORKER))

    id: str = Field(description="The node in the records of errors.")
    host: str
    pid: int
    started_at: str = Field(description="RFC 3339.")
    seen_at: str = Field(description="RFC 3339.")
    age: float = Field(description="Seconds since it was seen.")
    alive: bool = Field(description="It was seen in the last seconds.")
    queues: dict[str, ServingObject]


class WorkerList(BaseModel):
    """The processes that serve queues; those that died without a word stay for some minutes."""

    model_config = ConfigDict(json_schema_extra=examples_of({"workers": [_WORKER]}))

    workers: list[WorkerObject]


SCALE_BODY = json_body(
    {
        "title": "Scale",
        "type": "object",
        "required": ["workers"],
        "additionalProperties": False,
        "properties": {
            "workers": {
                "type": ["integer", "null"],
                "minimum": 1,
                "maximum": MOST_WORKERS,
                "description": "Per process. `null`: as its program says.",
            }
        },
    },
    ten={"workers": 10},
)

LIST_PROBLEMS: tuple[EventBusError, ...] = STORE_PROBLEMS
CHANGE_PROBLEMS: tuple[EventBusError, ...] = (
    InvalidQueue("the name of a queue must be 1 to 255 bytes without spaces and control characters, got 'a b'"),
    BodyTooLarge(1_048_576),
    BodyTooSlow(10),
    UnsupportedMediaType("expected content type application/json (UTF-8), got 'text/plain'"),
    InvalidRequest("unknown field 'until'; expected no field"),
    *STORE_PROBLEMS,
)
