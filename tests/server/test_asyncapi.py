"""The AsyncAPI document: valid, complete, and true; and the page that shows it.

That the frames themselves fit the schemas, tests/protocol and every test of the WebSocket look at.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import jsonschema
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, Field
from starlette.requests import HTTPConnection

from eventbus_fastapi import Event, EventBus, Message
from eventbus_fastapi.auth import AnyOf, ApiKeyAuth, BearerAuth, CookieAuth, JWTAuth, Principal
from eventbus_fastapi.errors import InvalidEvent, InvalidTopic
from eventbus_fastapi.protocol import frame_schemas
from eventbus_fastapi.protocol.cloudevents import error_event, gap_event
from eventbus_fastapi.protocol.commands import Refused
from eventbus_fastapi.protocol.parser import parse_client_frame
from eventbus_fastapi.server.asyncapi import EXAMPLES, AsyncAPI, Place
from eventbus_fastapi.settings import Settings
from tests.protocol.fitting import fault
from tests.server.asking import app_of, asking
from tests.unavailable import unavailable

Object = dict[str, Any]
PLACE = Place("bus.example:3000", "", is_secure=False)
MEMORY = "sqlite+aiosqlite:///:memory:"
NODE_TOOLS = "EVENTBUS_TEST_NODE_TOOLS"


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class UserCreated(Event, topic="user.created"):
    """<b>A user</b> has `signed up`."""

    id: int = Field(ge=1, description="<script>alert(1)</script>")
    place: tuple[float, float] | None = None
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Called(Event, topic="odd:one/two"):
    back: Callable[[int], int]


@dataclass
class Order:
    number: int


def known() -> EventBus:
    """A bus that knows events in every way."""
    eventbus = EventBus(MEMORY, events=[Called])

    @eventbus.handler("user.created", queue="email")
    async def welcome(event: UserCreated) -> None: ...

    @eventbus.handler("order.*", "order.*.#", group="größe/x")
    async def order(event: Order) -> None: ...

    @eventbus.handler("#")
    async def audit(message: Message) -> None: ...

    return eventbus


def document_of(eventbus: EventBus) -> Object:
    described = AsyncAPI(eventbus.catalog, eventbus.settings, ways=())
    document: Object = json.loads(described.text(PLACE))
    return document


@pytest.fixture(scope="module")
def document() -> Object:
    return document_of(known())


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def at(document: Object, reference: str) -> Any:
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def schema_in(document: Object, name: str) -> Object:
    return {"$ref": f"#/components/schemas/{name}", "components": document["components"]}


# --- the document --------------------------------------------------------------------------------


async def test_the_official_command_finds_the_document_valid(document: Object, tmp_path: Path) -> None:
    place = os.environ.get(NODE_TOOLS)
    command = shutil.which("asyncapi", path=f"{place}/node_modules/.bin" if place else None)
    if command is None:
        unavailable(f"no command asyncapi: {NODE_TOOLS} names no folder into which npm has installed @asyncapi/cli")
    file = tmp_path / "asyncapi.json"
    file.write_text(json.dumps(document))

    validating = await asyncio.create_subprocess_exec(
        *(command, "validate", file, "--fail-severity", "warn"),
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CI": "true"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said = (await validating.communicate())[0].decode()

    assert validating.returncode == 0, said
    assert "is valid" in said


def test_every_reference_leads_somewhere(document: Object) -> None:
    found = set(references(document))
    assert len(found) > 50
    for reference in found:
        at(document, reference)


def test_every_schema_is_one_of_draft_7(document: Object) -> None:
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft7Validator.check_schema(schema)


def test_every_frame_is_a_message_of_the_channel(document: Object) -> None:
    messages = document["channels"]["ws"]["messages"]
    kinds = [*frame_schemas.client_frames(Settings()), *frame_schemas.server_frames()]
    assert {kind.replace("ok ", "ok.").replace(" ", "-") for kind in kinds} <= messages.keys()


def test_every_message_is_in_an_operation(document: Object) -> None:
    used = {reference for operation in document["operations"].values() for reference in references(operation)}
    for key, channel in document["channels"].items():
        for message in channel["messages"]:
            assert f"#/channels/{key}/messages/{message}" in used


def test_every_example_fits_and_is_taken_as_it_stands(document: Object) -> None:
    assert EXAMPLES.keys() == frame_schemas.client_frames(Settings()).keys()
    for kind, examples in EXAMPLES.items():
        for example in examples:
            assert fault(schema_in(document, f"frame.{kind}"), example) is None
            [command] = parse_client_frame(json.dumps(example), Settings())
            assert not isinstance(command, Refused), command


def test_the_subprotocol_of_cloudevents_is_a_channel_of_its_own(document: Object) -> None:
    channel = document["channels"]["ws.cloudevents"]
    assert (channel["address"], list(channel["messages"])) == (
        "/ws",
        ["cloudevent", "cloudevent.error", "cloudevent.gap"],
    )
    assert set(channel["bindings"]["ws"]["query"]["properties"]) == {"pattern", "after", "from", "auth"}
    assert "cloudevents.json" in document["servers"]["websocket"]["description"]


def test_what_a_client_of_cloudevents_gets_fits_its_schema(document: Object) -> None:
    error = json.loads(error_event(InvalidTopic("a..b", "segment 2 is empty"), 3, "/eventbus"))
    gap = json.loads(gap_event(1, 7, "retention", "/eventbus"))
    event = {"specversion": "1.0", "id": "7", "source": "/shop", "type": "order.paid", "data": {"total": 9.5}}
    for name, each in {"cloudevent": event, "cloudevent.error": error, "cloudevent.gap": gap}.items():
        assert fault(schema_in(document, name), each) is None
    assert fault(schema_in(document, "cloudevent"), {**event, "type": "a..b"}) is not None


def test_joined_frames_are_described(document: Object) -> None:
    schema = schema_in(document, "frame.joined.frames")
    assert fault(schema, [{"type": "ping"}, {"type": "unsubscribe", "sub": 1}]) is None
    assert fault(schema, [{"type": "pong"}]) is not None


# --- events and handlers -------------------------------------------------------------------------


def test_a_topic_is_a_channel_with_the_schema_of_its_events(document: Object) -> None:
    channel = document["channels"]["user.created"]
    assert channel["address"] == "user.created"
    assert list(channel["messages"]) == ["event.UserCreated"]
    schema = schema_in(document, "payload.UserCreated")
    event = UserCreated(id=1, place=(1.5, 2), pet=Cat(kind="cat"))
    assert fault(schema, event.model_dump(mode="json")) is None
    assert fault(schema, {"id": 0, "pet": {"kind": "cat"}}) is not None
    assert fault(schema, {"id": 1, "pet": {"kind": "cow"}}) is not None
    assert fault(schema, {"id": 1, "pet": {"kind": "cat"}, "place": [1, 2, 3]}) is not None


def test_a_handler_is_an_operation_for_each_of_its_patterns(document: Object) -> None:
    handled = [each for key, each in document["operations"].items() if key.startswith("handle.")]
    assert [(at(document, each["channel"]["$ref"])["address"], each["action"]) for each in handled] == [
        ("user.created", "receive"),
        ("order.*", "receive"),
        ("order.*.#", "receive"),
        ("#", "receive"),
    ]
    assert "größe/x" in handled[1]["summary"]
    assert fault(schema_in(document, "payload.Order"), {"number": "no"}) is not None


def test_a_class_without_a_schema_is_there_and_says_why(document: Object) -> None:
    assert "no JSON Schema" in document["components"]["schemas"]["payload.Called"]["description"]


def test_a_handler_that_is_registered_later_is_described_from_then_on() -> None:
    eventbus = EventBus(MEMORY)
    described = AsyncAPI(eventbus.catalog, eventbus.settings, ways=())
    assert "user.created" not in described.document(PLACE)["channels"]

    @eventbus.handler(UserCreated, group="late")
    async def late(message: Message) -> None: ...

    assert list(described.document(PLACE)["channels"]["user.created"]["messages"]) == ["event.UserCreated"]


def test_classes_of_the_same_name_are_told_apart() -> None:
    class Made(Event, topic="a.made"):
        a: int

    first = Made

    class Made(Event, topic="b.made"):  # type: ignore[no-redef]
        b: int

    document = document_of(EventBus(MEMORY, events=[first, Made]))
    for topic, name in (("a.made", "a"), ("b.made", "b")):
        [message] = document["channels"][topic]["messages"].values()
        payload = at(document, message["$ref"])["payload"]["$ref"]
        assert fault({"$ref": payload, "components": document["components"]}, {name: 1}) is None
        assert fault({"$ref": payload, "components": document["components"]}, {}) is not None


@pytest.mark.parametrize("event", [Event, Order, "user.created", UserCreated(id=1, pet=Cat(kind="cat"))])
def test_what_is_no_event_class_with_a_topic_cannot_be_declared(event: Any) -> None:
    eventbus = EventBus(MEMORY)
    with pytest.raises(InvalidEvent, match=r"expected an Event class|has no topic"):
        eventbus.declare(UserCreated, event)
    assert eventbus.catalog.events == ()


# --- served --------------------------------------------------------------------------------------


async def test_the_document_says_where_it_was_asked_for() -> None:
    app = FastAPI()
    app.include_router(known().router(), prefix="/bus")

    async with asking(app) as http:
        answer = await http.get("/bus/asyncapi.json", headers={"host": "events.example:8443"})

    assert answer.headers["content-type"] == "application/json"
    server = answer.json()["servers"]["websocket"]
    assert (server["host"], server["pathname"], server["protocol"]) == ("events.example:8443", "/bus", "ws")
    assert "securitySchemes" not in answer.json()["components"]


@pytest.mark.parametrize("host", ["[", "a b", '"><script>', "a" * 300, "a:b", ""])
async def test_a_host_that_is_none_is_not_repeated(host: str) -> None:
    async with asking(app_of(known())) as http:
        for path in ("/asyncapi.json", "/asyncapi"):
            answer = await http.get(path, headers={"host": host})
            assert answer.status_code == 200
            assert not host or f">{host}" not in answer.text
        assert (await http.get("/asyncapi.json", headers={"host": host})).json()["servers"]["websocket"][
            "host"
        ] == "bus"


async def test_a_guarded_bus_shows_it_to_those_who_say_who_they_are_and_how_that_is_said() -> None:
    async def authenticate(connection: HTTPConnection) -> Principal | None:
        return Principal("ann") if connection.headers.get("authorization") == "Bearer t" else None

    async with asking(app_of(EventBus(MEMORY, authenticate=authenticate))) as http:
        for path in ("/asyncapi.json", "/asyncapi"):
            assert (await http.get(path)).status_code == 401
        answer = await http.get("/asyncapi.json", headers={"authorization": "Bearer t"})

    assert answer.json()["components"]["securitySchemes"]["app"]["scheme"] == "bearer"
    assert answer.json()["servers"]["websocket"]["security"] == [{"$ref": "#/components/securitySchemes/app"}]


def security_of(eventbus: EventBus) -> Object:
    """The security schemes by name, each of which is enough."""
    document: Object = json.loads(AsyncAPI(eventbus.catalog, eventbus.settings, ways=eventbus.ways).text(PLACE))
    schemes: Object = document["components"]["securitySchemes"]
    for server in document["servers"].values():
        assert server["security"] == [{"$ref": f"#/components/securitySchemes/{name}"} for name in schemes]
    return schemes


def test_each_way_to_say_who_one_is_is_a_security_scheme() -> None:
    ann = {"sha256:" + "0" * 64: Principal("ann")}
    ways = AnyOf(
        BearerAuth(ann),
        JWTAuth("k" * 32, algorithms=["HS256"], audience="eventbus", issuer=None),
        ApiKeyAuth(ann, header="x-shop-key"),
        CookieAuth(lambda connection: None),
        BearerAuth(ann),
    )
    schemes = security_of(EventBus(settings=Settings(database_url=MEMORY, tickets=True), authenticate=ways))
    for form in ("Authorization: Bearer", "bearer.<base64url", "?auth=frame"):
        assert form in schemes["token"]["description"]
    for each in schemes.values():
        del each["description"]
    assert schemes == {
        "token": {"type": "http", "scheme": "bearer"},
        "jwt": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
        "key.x-shop-key": {"type": "httpApiKey", "name": "x-shop-key", "in": "header"},
        "cookie": {"type": "httpApiKey", "name": "session", "in": "cookie"},
        "ticket": {"type": "httpApiKey", "name": "ticket", "in": "query"},
    }


def test_what_a_callable_of_the_app_takes_is_said_to_be_its_own_affair() -> None:
    schemes = security_of(EventBus(MEMORY, authenticate=lambda connection: None))
    assert list(schemes) == ["app"]
    assert "the app's own affair" in schemes["app"]["description"]


@pytest.fixture
async def page() -> httpx.Response:
    async with asking(app_of(known())) as http:
        return await http.get("/asyncapi")


async def test_the_page_loads_and_runs_nothing(page: httpx.Response) -> None:
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert "<script" not in page.text
    assert re.findall(r"(?:src|href)=\"(?!#)([^\"]*)", page.text) == ["asyncapi.json"]


async def test_the_page_shows_text_as_text(page: httpx.Response) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text
    assert "&lt;b&gt;A user&lt;/b&gt; has <code>signed up</code>." in page.text


async def test_every_link_of_the_page_leads_somewhere(page: httpx.Response, document: Object) -> None:
    anchors = set(re.findall(r"id=\"([^\"]*)", page.text))
    assert set(re.findall(r"href=\"#([^\"]*)", page.text)) <= anchors
    assert {f"message-{key}" for key in document["components"]["messages"]} <= anchors
    assert {f"channel-{key}" for key in document["channels"]} <= anchors
