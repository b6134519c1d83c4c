"""What the AsyncAPI document says of `/ws` with the subprotocol `cloudevents.json`; see `asyncapi`."""

from __future__ import annotations

from typing import Any

from eventbus_fastapi.protocol import frame_schemas, schemas
from eventbus_fastapi.protocol.cloudevents import STRUCTURED, SUBPROTOCOL
from eventbus_fastapi.protocol.commands import MAX_PATTERNS
from eventbus_fastapi.server.openapi_cloudevents import CLOUDEVENT

KEY = "ws.cloudevents"
"""Of the channel."""

_GAP = frame_schemas.server_frames()["gap"]["properties"]
_SAID = {"type": "object", "required": ["specversion", "id", "source", "type", "data"]}

SCHEMAS: dict[str, Any] = {
    "cloudevent": CLOUDEVENT,
    "cloudevent.error": {
        **_SAID,
        "description": "What was sent is refused. `subject` is the number of the message on this connection, from 1.",
        "properties": {"type": {"const": "eventbus.error"}, "subject": {"type": "string"}, "data": frame_schemas.ERROR},
    },
    "cloudevent.gap": {
        **_SAID,
        "description": "Events were asked for and will not come.",
        "properties": {
            "type": {"const": "eventbus.gap"},
            "data": {
                "type": "object",
                "required": ["first_seq", "last_seq", "reason"],
                "properties": {name: _GAP[name] for name in ("first_seq", "last_seq", "reason")},
            },
        },
    },
}

MESSAGES: dict[str, Any] = {
    name: {
        "name": name,
        "title": name,
        "summary": schema["description"],
        "contentType": STRUCTURED,
        "payload": {"$ref": f"#/components/schemas/{name}"},
    }
    for name, schema in SCHEMAS.items()
}

CHANNEL: dict[str, Any] = {
    "address": "/ws",
    "title": "CloudEvents",
    "description": f"With the subprotocol `{SUBPROTOCOL}` each message is one CloudEvent; what is read is said in the "
    "query. Docs: cloudevents.md.",
    "servers": [{"$ref": "#/servers/websocket"}],
    "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in MESSAGES},
    "bindings": {
        "ws": {
            "method": "GET",
            "query": {
                "type": "object",
                "properties": {
                    "pattern": {
                        "type": "array",
                        "items": schemas.PATTERN,
                        "maxItems": MAX_PATTERNS,
                        "description": "What is read, repeated for each; none: nothing.",
                    },
                    "after": {"type": "integer", "minimum": 0, "description": "Read what comes after this seq."},
                    "from": {"type": "string", "description": "Instead: `now`, `earliest`, a seq or a time."},
                    "auth": {"const": "frame", "description": "The token comes in the first message, a frame `auth`."},
                },
            },
            "bindingVersion": "0.1.0",
        }
    },
}


def _operation(action: str, summary: str, *messages: str) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{KEY}"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/{KEY}/messages/{each}"} for each in messages],
    }


OPERATIONS: dict[str, Any] = {
    "cloudevents.receive": _operation("receive", "A client publishes a CloudEvent.", "cloudevent"),
    "cloudevents.send": _operation("send", "Events that were asked for, and what the bus says.", *MESSAGES),
}
