"""The catalog: the Event classes that a bus knows, and the JSON Schemas of their payloads.

A bus knows the classes that it was told of (`EventBus(events=[…])`, `eventbus.declare(…)`), and those that its handlers
name: as what they handle, or as the type of what they take. Nothing is collected behind anybody's back: a class that
was defined, imported or published somewhere is in no catalog for that.

The schemas say what a payload must be for the class to take it (Pydantic's mode `validation`), by alias.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from eventbus_fastapi.errors import InvalidEvent, quote
from eventbus_fastapi.events import Event, Message
from eventbus_fastapi.pipeline.handlers import Handler, HandlerGroup

Schema = dict[str, Any]


class Catalog:
    """See the module's docstring."""

    def __init__(self, handlers: HandlerGroup) -> None:
        self.handlers = handlers
        self._declared: dict[type[Event], None] = {}

    def declare(self, *events: type[Event]) -> None:
        """Know these classes, too. Declaring one twice is once.

        Raises:
            InvalidEvent: one of them is no Event class, or has no topic; none was taken.
        """
        for event in events:
            _check(event)
        self._declared.update(dict.fromkeys(events))

    @property
    def events(self) -> tuple[type[Event], ...]:
        """Every class that is known, by topic and name."""
        known = {**self._declared, **{event: None for handler in self.handlers for event in _events_of(handler)}}
        return tuple(sorted(known, key=lambda event: (event.__topic__, event.__module__, event.__qualname__)))


def _check(event: object) -> None:
    if not isinstance(event, type) or not issubclass(event, Event):
        raise InvalidEvent(f"expected an Event class, got {quote(event)}")
    if not event.__topic__:
        raise InvalidEvent(f'{event.__name__} has no topic: declare it as class {event.__name__}(Event, topic="…")')


def _events_of(handler: Handler) -> Iterable[type[Event]]:
    taken = handler.target.payload
    if isinstance(taken, type) and issubclass(taken, Event) and taken.__topic__:
        return (*handler.events, taken)
    return handler.events


# --- schemas -------------------------------------------------------------------------------------


def payload_of(handler: Handler) -> Any:
    """Return the type of what a handler takes, or of the only class that it handles; None: nothing is said of it."""
    taken = handler.target.payload
    if taken is not Any and taken is not Message:
        return taken
    return handler.events[0] if len(handler.events) == 1 == len(handler.patterns) else None


def schemas_of(
    types: Mapping[str, Any], *, refer: str = "#/$defs/{model}", is_draft_7: bool = False
) -> tuple[dict[str, Schema], dict[str, Schema]]:
    """Return the schema of each type, by its key, and the definitions that these refer to.

    One of which there is no JSON Schema takes anything, and says why. `is_draft_7`: for programs that know no newer
    JSON Schema.
    """
    generator = _Draft7 if is_draft_7 else GenerateJsonSchema
    adapters: dict[str, TypeAdapter[Any]] = {}
    unsaid: dict[str, Schema] = {}
    for key, kind in types.items():
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        try:
            adapter.json_schema(schema_generator=generator)
        except (PydanticInvalidForJsonSchema, PydanticUserError) as exc:
            name = getattr(kind, "__name__", str(kind))
            unsaid[key] = {"title": name, "description": f"There is no JSON Schema of it: {exc.message}"}
        else:
            adapters[key] = adapter
    found, definitions = TypeAdapter.json_schemas(
        [(key, "validation", adapter) for key, adapter in adapters.items()],
        ref_template=refer,
        schema_generator=generator,
    )
    return {**{key: schema for (key, _), schema in found.items()}, **unsaid}, definitions.get("$defs", {})


class _Draft7(GenerateJsonSchema):
    """What draft 7 has another word for, or none."""

    def tuple_schema(self, schema: core_schema.TupleSchema) -> Schema:
        written = super().tuple_schema(schema)
        if "prefixItems" in written:
            rest = written.pop("items", False)
            written["items"] = written.pop("prefixItems")
            written["additionalItems"] = rest
        return written

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> Schema:
        written = super().tagged_union_schema(schema)
        written.pop("discriminator", None)  # OpenAPI's own; the alternatives say it, too
        return written
