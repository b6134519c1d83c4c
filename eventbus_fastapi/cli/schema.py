"""`eventbus schema`: the JSON Schemas of the events that an app knows, or its AsyncAPI document."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.cli.terminal import fail, show
from eventbus_fastapi.cli.worker import find
from eventbus_fastapi.errors import quote
from eventbus_fastapi.pipeline.catalog import schemas_of
from eventbus_fastapi.server.asyncapi import AsyncAPI, Place

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(
    target: Annotated[str, typer.Argument(help="Where the EventBus is: module:name, as in myapp.main:eventbus.")],
    topic: Annotated[str | None, typer.Argument(help="Of this topic only.", show_default=False)] = None,
    asyncapi: Annotated[bool, typer.Option("--asyncapi", help="Print the AsyncAPI document instead.")] = False,
    host: Annotated[str, typer.Option(help="Of the server in the AsyncAPI document.")] = "127.0.0.1:3000",
) -> None:
    """Print the JSON Schemas of the events that an app declares or handles, as one document. Nothing is started."""
    if asyncapi and topic is not None:
        raise typer.BadParameter("a topic is for JSON Schemas; --asyncapi prints the document of all")
    eventbus = find(target)
    if asyncapi:
        described = AsyncAPI(eventbus.catalog, eventbus.settings, ways=eventbus.ways)
        _print(described.document(Place(host, "", is_secure=False)))
    elif topic is None:
        _print(_all(eventbus))
    else:
        _print(_one(eventbus, topic))


def _all(eventbus: EventBus) -> dict[str, Any]:
    """Return one JSON Schema: an object with a property for each topic."""
    events = eventbus.catalog.events
    found, definitions = schemas_of({str(place): event for place, event in enumerate(events)})
    topics: dict[str, list[Any]] = {}
    for place, event in enumerate(events):
        topics.setdefault(event.__topic__, []).append(found[str(place)])
    properties = {topic: each[0] if len(each) == 1 else {"anyOf": each} for topic, each in topics.items()}
    return {
        "$schema": DIALECT,
        "title": "Payloads by topic",
        "type": "object",
        "properties": properties,
        **_defined(definitions),
    }


def _one(eventbus: EventBus, topic: str) -> dict[str, Any]:
    events = [event for event in eventbus.catalog.events if event.__topic__ == topic]
    if not events:
        known = ", ".join(dict.fromkeys(event.__topic__ for event in eventbus.catalog.events)) or "none"
        fail(f"no event of topic {quote(topic)} is declared or handled; known are: {known}")
    found, definitions = schemas_of({str(place): event for place, event in enumerate(events)})
    schemas = list(found.values())
    return {"$schema": DIALECT, **(schemas[0] if len(schemas) == 1 else {"anyOf": schemas}), **_defined(definitions)}


def _defined(definitions: dict[str, Any]) -> dict[str, Any]:
    return {"$defs": definitions} if definitions else {}


def _print(document: dict[str, Any]) -> None:
    show(json.dumps(document, indent=2, ensure_ascii=False))
