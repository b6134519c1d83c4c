"""The AsyncAPI 3 document of a bus: the frames of `/ws`, the topics of the Event classes it knows, and its handlers.

It has two servers at one address, because there are two layers: `websocket` carries frames, in the channel `ws`; the
frames carry events, and so the topics are channels of the server `eventbus`. The bus is the application that the
document describes: it receives what clients send, and what its handlers take; it sends what subscribers get.

Everything is made from what does the work: the frames' schemas, the catalog, the settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, assert_never

from pydantic_core import to_json
from starlette.requests import HTTPConnection

from eventbus_fastapi.auth.way import Way
from eventbus_fastapi.events import Event
from eventbus_fastapi.pipeline.catalog import Catalog, Schema, payload_of, schemas_of
from eventbus_fastapi.pipeline.handlers import Handler
from eventbus_fastapi.protocol import frame_schemas, schemas
from eventbus_fastapi.protocol.cloudevents import SUBPROTOCOL as CLOUDEVENTS
from eventbus_fastapi.protocol.commands import MAX_JOINED
from eventbus_fastapi.protocol.frames import SUBPROTOCOL
from eventbus_fastapi.server import asyncapi_cloudevents
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.version import VERSION

ASYNCAPI = "3.0.0"
JSON = "application/json"
_SCHEMAS = "#/components/schemas/"
_DESCRIPTION = """\
A durable, ordered event bus. Programs connect to the WebSocket `/ws` with the subprotocol `eventbus.v1`, or with none
for the plain dialect, and exchange frames of JSON; or with `cloudevents.json`, and each message is one CloudEvent. What
is sent carries events, each of a topic.
"""
_TOKEN = (
    "A token in the header `Authorization: Bearer …` of the handshake; from a browser as a second subprotocol, "
    "`bearer.<base64url of the token>`; or in the first frame, `auth`, of a handshake with `?auth=frame`."
)
_BEARER = {"type": "http", "scheme": "bearer"}
_FRAMES = "ws"
"""The channel of those who exchange frames."""

_NAMED: dict[str, Schema] = {
    "PublishedEvent": schemas.PUBLISHED_EVENT,
    "Event": frame_schemas.EVENT,
    "Metadata": frame_schemas.METADATA,
    "Error": frame_schemas.ERROR,
}
"""Schemas that others refer to by name."""

_ANSWERED: dict[str, tuple[str, ...]] = {
    "subscribe": ("ok.subscribe", "ok.subscribe-as-member"),
    "ping": ("ok.ping", "pong"),
}
"""What answers a frame beside `error`, where that is not its own `ok`."""


class Place(NamedTuple):
    """Where a bus is, as the client sees it."""

    host: str
    """With the port."""
    prefix: str
    """The path of the router, without a slash at its end."""
    is_secure: bool

    @classmethod
    def of(cls, connection: HTTPConnection, own_path: str) -> Place:
        """Return the place of the bus whose route `own_path` was asked for."""
        scope = connection.scope
        given = connection.headers.get("host", "")
        host, port = scope.get("server") or ("localhost", None)
        fallback = f"{host}:{port}" if port else str(host)
        path = scope["path"].removesuffix(own_path)
        return cls(given if _HOST.fullmatch(given) else fallback, path, scope["scheme"] in ("https", "wss"))


_HOST = re.compile(r"[A-Za-z0-9._\-]{1,255}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")


class AsyncAPI:
    """The document of one bus, made anew when its catalog has changed."""

    def __init__(self, catalog: Catalog, settings: Settings, *, ways: Iterable[Way]) -> None:
        self._catalog = catalog
        self._settings = settings
        self._security = dict(map(_security, ways))
        self._made_of: tuple[object, ...] | None = None
        self._made: dict[str, Any] = {}

    def document(self, place: Place) -> dict[str, Any]:
        """Return the document, as JSON's values; whoever gets it changes nothing in it."""
        made_of = (*self._catalog.events, *self._catalog.handlers)
        if made_of != self._made_of:
            self._made, self._made_of = _document(self._catalog, self._settings), made_of
        return {**self._made, "servers": self._servers(place), "components": self._components()}

    def text(self, place: Place) -> bytes:
        """Return the document as text."""
        return to_json(self.document(place))

    def _servers(self, place: Place) -> dict[str, Any]:
        protocol = "wss" if place.is_secure else "ws"
        schemes = [{"$ref": f"#/components/securitySchemes/{name}"} for name in self._security]
        security = {"security": schemes} if schemes else {}
        return {
            "websocket": {
                "host": place.host,
                "pathname": place.prefix or "/",
                "protocol": protocol,
                "title": "The WebSocket",
                "description": f"Subprotocol `{SUBPROTOCOL}`; none for the plain dialect; or `{CLOUDEVENTS}`.",
                **security,
            },
            "eventbus": {
                "host": place.host,
                "pathname": f"{place.prefix}/ws",
                "protocol": SUBPROTOCOL,
                "title": "The bus",
                "description": "What the frames of the WebSocket carry: events, each of a topic.",
                **security,
            },
        }

    def _components(self) -> dict[str, Any]:
        components: dict[str, Any] = self._made["components"]
        return {**components, "securitySchemes": self._security} if self._security else components


def _security(way: Way) -> tuple[str, dict[str, Any]]:
    """Return the name and the security scheme of a way to say who one is."""
    match way.kind:
        case "token":
            form = {} if way.name is None else {"bearerFormat": way.name}
            return (way.name or "token").lower(), {**_BEARER, **form, "description": _TOKEN}
        case "header":
            description = "A key in a header of the handshake; for programs, as browsers can send none."
            return f"key.{_key(way.name or '')}", _api_key(way.name, "header", description)
        case "cookie":
            description = "A cookie of the app, whose name and meaning it alone knows (`session` is Starlette's)."
            return "cookie", _api_key("session", "cookie", description)
        case "ticket":
            description = "A ticket from `POST /tickets`: once, within 30 seconds, as `?ticket=…`."
            return "ticket", _api_key("ticket", "query", description)
        case "app":
            description = f"What is taken is the app's own affair. A token may come thus: {_TOKEN}"
            return "app", {**_BEARER, "description": description}
        case _:
            assert_never(way.kind)


def _api_key(name: str | None, place: str, description: str) -> dict[str, Any]:
    return {"type": "httpApiKey", "name": name, "in": place, "description": description}


def _document(catalog: Catalog, settings: Settings) -> dict[str, Any]:
    frames = _frames(settings)
    topics = _Topics(catalog)
    return {
        "asyncapi": ASYNCAPI,
        "info": {
            "title": "eventbus-fastapi",
            "version": VERSION,
            "description": _DESCRIPTION,
            "license": {"name": "MIT"},
        },
        "defaultContentType": JSON,
        "channels": {
            _FRAMES: _websocket(frames),
            asyncapi_cloudevents.KEY: asyncapi_cloudevents.CHANNEL,
            **topics.channels,
        },
        "operations": {**_operations(settings), **asyncapi_cloudevents.OPERATIONS, **topics.operations},
        "components": {
            "messages": {**frames, **asyncapi_cloudevents.MESSAGES, **topics.messages},
            "schemas": {**_frame_schemas(settings), **asyncapi_cloudevents.SCHEMAS, **topics.schemas},
        },
    }


# --- frames --------------------------------------------------------------------------------------


def _kinds(settings: Settings) -> tuple[dict[str, Schema], dict[str, Schema]]:
    """Return the schemas of frames by the names of their messages: of clients, and of servers."""
    client, server = frame_schemas.client_frames(settings), frame_schemas.server_frames()
    client["joined.frames"] = {
        "description": f"Up to {MAX_JOINED:,} frames, done in order (`{SUBPROTOCOL}` only).",
        **frame_schemas.joined(_references(client), most=MAX_JOINED),
    }
    server["joined.answers"] = {
        "description": f"Several frames in one, in order (`{SUBPROTOCOL}` only).",
        **frame_schemas.joined(_references(server)),
    }
    server["plain.event"] = frame_schemas.EVENT
    return {_key(name): each for name, each in client.items()}, {_key(name): each for name, each in server.items()}


def _references(kinds: Iterable[str]) -> dict[str, Schema]:
    return {kind: {"$ref": f"{_SCHEMAS}frame.{_key(kind)}"} for kind in kinds}


def _frame_schemas(settings: Settings) -> dict[str, Schema]:
    client, server = _kinds(settings)
    frames = {f"frame.{name}": _referring(schema) for name, schema in {**client, **server}.items()}
    named = {f"eventbus.{name}": _referring(schema, but=schema) for name, schema in _NAMED.items()}
    return {**named, **frames}


def _referring(value: Any, but: Schema | None = None) -> Any:
    """Return a schema in which those that have a name are referred to by it."""
    if isinstance(value, dict):
        if value is not but:
            for name, named in _NAMED.items():
                if value is named:
                    return {"$ref": f"{_SCHEMAS}eventbus.{name}"}
        return {key: _referring(each) for key, each in value.items()}
    return [_referring(each) for each in value] if isinstance(value, list) else value


def _frames(settings: Settings) -> dict[str, Any]:
    client, server = _kinds(settings)
    return {name: _frame(name, schema) for name, schema in {**client, **server}.items()}


def _frame(name: str, schema: Schema) -> dict[str, Any]:
    properties = schema.get("properties", {})
    correlated = {"correlationId": {"location": "$message.payload#/id"}} if "id" in properties else {}
    examples = {"examples": [{"payload": each} for each in EXAMPLES[name]]} if name in EXAMPLES else {}
    return {
        "name": name,
        "title": name,
        "summary": schema["description"],
        "contentType": JSON,
        "payload": {"$ref": f"{_SCHEMAS}frame.{name}"},
        **correlated,
        **examples,
    }


_AUTH_IN_FRAME: Schema = {
    "type": "object",
    "properties": {"auth": {"const": "frame", "description": "The token comes in the first frame."}},
}


def _websocket(frames: Iterable[str]) -> dict[str, Any]:
    return {
        "address": "/ws",
        "title": "Frames",
        "description": "Every frame, in both directions. Docs: protocol.md.",
        "servers": [{"$ref": "#/servers/websocket"}],
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in frames},
        "bindings": {"ws": {"method": "GET", "query": _AUTH_IN_FRAME, "bindingVersion": "0.1.0"}},
    }


def _operations(settings: Settings) -> dict[str, Any]:
    client, server = _kinds(settings)
    operations = {kind: _asking(kind) for kind in client if kind != "joined.frames"}
    operations["joined.frames"] = _operation("receive", "ws", ["joined.frames"], client["joined.frames"]["description"])
    told = [kind for kind in server if not kind.startswith("ok.") and kind not in ("pong", "error", *_OF_EVENTS)]
    operations["events"] = _operation("send", "ws", _OF_EVENTS, "Events, one or several, of what was subscribed to.")
    operations["notices"] = _operation("send", "ws", [*told, "error"], "What the bus says for itself.")
    return operations


_OF_EVENTS = ["event", "joined.answers", "plain.event"]


def _asking(kind: str) -> dict[str, Any]:
    answers = [*_ANSWERED.get(kind, (f"ok.{kind}",)), "error"]
    channel = {"$ref": "#/channels/ws"}
    reply = {"channel": channel, "messages": [{"$ref": f"#/channels/ws/messages/{each}"} for each in answers]}
    return {**_operation("receive", "ws", [kind], f"A client sends `{kind}`."), "reply": reply}


def _operation(action: str, channel: str, messages: Iterable[str], summary: str) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{each}"} for each in messages],
    }


def _key(name: str) -> str:
    """Return a name as a key of components."""
    return re.sub(r"[^A-Za-z0-9._\-]", "-", name.replace("ok ", "ok.", 1))


EXAMPLES: Mapping[str, list[Any]] = {
    "publish": [{"type": "publish", "id": 1, "data": {"topic": "chat.user1", "payload": "Hello"}}],
    "publish_batch": [{"type": "publish_batch", "id": 2, "messages": [{"topic": "chat.user1", "payload": {"n": 1}}]}],
    "subscribe": [
        {"type": "subscribe", "id": 3, "sub": 1, "patterns": ["chat.*"], "after": 16},
        {"type": "subscribe", "id": 4, "sub": 2, "pattern": "user.#", "group": "user-sync", "credit": 100},
    ],
    "unsubscribe": [{"type": "unsubscribe", "id": 5, "sub": 1}],
    "ack": [{"type": "ack", "id": 6, "seq": 17}, {"type": "ack", "sub": 2, "up_to": 20}],
    "nack": [{"type": "nack", "id": 7, "sub": 2, "seq": 17, "attempt": 1, "delay": 5, "reason": "busy"}],
    "reject": [{"type": "reject", "id": 8, "sub": 2, "seq": 17, "reason": "unknown user"}],
    "extend": [{"type": "extend", "id": 9, "sub": 2, "seqs": [17, 18]}],
    "credit": [{"type": "credit", "id": 10, "sub": 1, "credit": 100}],
    "auth": [{"type": "auth", "id": 11, "token": "eyJhbGciOi…"}],
    "ping": [{"type": "ping"}],
}
"""Frames of clients, as they are sent."""


# --- topics --------------------------------------------------------------------------------------


class _Topics:
    """The channels, operations, messages and schemas of the catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self.channels: dict[str, Any] = {}
        self.operations: dict[str, Any] = {}
        self.messages: dict[str, Any] = {}
        self.schemas: dict[str, Schema] = {}
        self._keys: dict[str, str] = {}
        self._taken: set[str] = {_FRAMES, asyncapi_cloudevents.KEY}
        events = catalog.events
        handlers = list(catalog.handlers)
        self._add_messages(events, handlers)
        for event in events:
            channel = self._channel(event.__topic__, self._message_of(event))
            summary = f"Subscribers of a pattern that matches `{event.__topic__}` get it."
            self._add_operation(f"send.{event.__topic__}", "send", channel, [self._message_of(event)], summary)
        for handler in handlers:
            for pattern in handler.patterns:
                self._add_handler(handler, pattern, events)

    def _add_messages(self, events: Iterable[type[Event]], handlers: Iterable[Handler]) -> None:
        kinds: dict[str, Any] = {}
        self._messages: dict[Any, str] = {}
        for kind in [*events, *[taken for handler in handlers if (taken := payload_of(handler)) is not None]]:
            if _identity(kind) not in self._messages:
                key = self._unused(_key(getattr(kind, "__name__", None) or str(kind)), kinds)
                kinds[key], self._messages[_identity(kind)] = kind, key
        found, definitions = schemas_of(kinds, refer=f"{_SCHEMAS}{{model}}", is_draft_7=True)
        self.schemas = {**definitions, **{f"payload.{key}": schema for key, schema in found.items()}}
        for key, schema in found.items():
            description = {"description": text} if (text := _text_of(kinds[key], schema)) else {}
            self.messages[f"event.{key}"] = {
                "name": key,
                "title": key,
                "contentType": JSON,
                "headers": {"$ref": f"{_SCHEMAS}eventbus.Metadata"},
                "payload": {"$ref": f"{_SCHEMAS}payload.{key}"},
                **description,
            }

    def _message_of(self, kind: Any) -> str:
        return f"event.{self._messages[_identity(kind)]}"

    def _channel(self, address: str, *messages: str) -> str:
        """Return the key of the channel of a topic or pattern, which has these messages from now on."""
        if address not in self._keys:
            key = self._keys[address] = self._unused(_key(address.replace("*", "one").replace("#", "all")), self._taken)
            self._taken.add(key)
            self.channels[key] = {
                "address": address,
                "title": address,
                "servers": [{"$ref": "#/servers/eventbus"}],
                "messages": {},
            }
        key = self._keys[address]
        for message in messages:
            self.channels[key]["messages"][message] = {"$ref": f"#/components/messages/{message}"}
        return key

    def _add_handler(self, handler: Handler, pattern: str, events: Iterable[type[Event]]) -> None:
        kind = payload_of(handler)
        messages = [self._message_of(event) for event in events if event.__topic__ == pattern]
        if kind is not None:
            messages = [self._message_of(kind)]
        elif not messages:
            messages = ["event.any"]
            self.messages["event.any"] = {
                "name": "any",
                "title": "any",
                "summary": "An event of any content type.",
                "headers": {"$ref": f"{_SCHEMAS}eventbus.Metadata"},
                "payload": {},
            }
        channel = self._channel(pattern, *messages)
        summary = f"Handled by {handler.group}, in the queue {handler.queue}."
        self._add_operation(f"handle.{handler.group}", "receive", channel, messages, summary)

    def _add_operation(self, name: str, action: str, channel: str, messages: list[str], summary: str) -> None:
        key = self._unused(_key(name), self.operations)
        self.operations[key] = _operation(action, channel, messages, summary)

    def _unused(self, key: str, taken: Iterable[str]) -> str:
        return next(each for each in _numbered(key) if each not in taken)


def _numbered(key: str) -> Iterator[str]:
    yield key
    number = 2
    while True:
        yield f"{key}-{number}"
        number += 1


def _identity(kind: Any) -> object:
    """Return what is the same for the same type; not all can be hashed."""
    return kind if isinstance(kind, type) else repr(kind)


def _text_of(kind: Any, schema: Schema) -> str | None:
    if isinstance(kind, type) and issubclass(kind, Event):
        own = kind.__dict__.get("__doc__")
        return None if own is None else str(own).strip()
    return schema.get("description")
