"""Holds frames that tests send and see against the schemas of the AsyncAPI document, which are those of `protocol`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jsonschema_rs

from eventbus_fastapi.protocol import frame_schemas
from eventbus_fastapi.protocol.commands import Command, Refused
from eventbus_fastapi.protocol.schemas import Schema
from eventbus_fastapi.settings import Settings


def fault(schema: Schema, value: object) -> str | None:
    """Return why a value does not fit a schema; None: it fits."""
    errors = list(_validator(json.dumps(schema)).iter_errors(value))
    return None if not errors else "; ".join(f"{error.instance_path}: {error.message}" for error in errors)


@lru_cache(maxsize=256)
def _validator(schema: str) -> jsonschema_rs.Draft7Validator:
    return jsonschema_rs.Draft7Validator(json.loads(schema), validate_formats=True)


def check_client_frame(frame: object, command: Command | Refused, limits: Settings) -> None:
    """A frame that the parser takes fits its schema; one that it calls bad does not, unless for a time."""
    kind = frame.get("type") if isinstance(frame, Mapping) else None
    schema = frame_schemas.client_frames(limits).get(kind) if isinstance(kind, str) else None
    if not isinstance(command, Refused):
        assert schema is not None, frame
        assert (why := fault(schema, frame)) is None, (frame, why)
    elif command.error.code == "frame.bad" and schema is not None and "RFC 3339" not in str(command.error):
        assert fault(schema, frame) is not None, (frame, command.error)


def check_server_frame(frame: Mapping[str, Any], answers: str | None = None) -> None:
    """A frame that a server sends fits its schema. `answers`: what an `ok` answers; None: any."""
    kind = frame.get("type")
    schemas = frame_schemas.server_frames()
    if kind is None:
        assert (why := fault(frame_schemas.EVENT, frame)) is None, (frame, why)
    elif kind == "ok" and answers is None:
        assert any(fault(schema, frame) is None for name, schema in schemas.items() if name.startswith("ok ")), frame
    else:
        name = f"ok {answers}" if kind == "ok" else str(kind)
        assert (why := fault(schemas[name], frame)) is None, (frame, why)
