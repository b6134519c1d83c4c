"""The schemas of frames and the code that reads and writes them say the same."""

from __future__ import annotations

import json
from typing import Any, get_args

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventbus_fastapi.protocol import commands, frame_schemas, frames
from eventbus_fastapi.protocol.parser import KINDS, parse_client_frame
from eventbus_fastapi.protocol.schemas import Schema
from eventbus_fastapi.settings import Settings
from tests.protocol.fitting import check_client_frame, fault

LIMITS = Settings(buffer=100, max_batch=3)
CLIENT = frame_schemas.client_frames(LIMITS)
SERVER = frame_schemas.server_frames()

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    1.0,
    1.5,
    -1,
    5,
    101,
    2**53,
    2**63,
    "",
    "a",
    "a.*",
    "a..b",
    "now",
    "earliest",
    [],
    [1],
]
VALUES += [["a.#"], [0], ["a", 1], {}, "2026-01-01T00:00:00Z", "catch_up", "0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3"]
VALUES += [{"topic": "a", "payload": 1}, {"topic": "a"}, {"topic": "a", "payload_base64": "AA=="}, {"payload": 1}]
VALUES += [
    [{"topic": "a", "payload": 1}],
    [{"topic": "a", "payload": 1}, {"topic": "a", "payload": 2, "durable": False}],
]


@pytest.mark.parametrize("schema", [*CLIENT.values(), *SERVER.values(), frame_schemas.EVENT])
def test_a_schema_is_one(schema: Schema) -> None:
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.Draft202012Validator.check_schema(schema)


def test_every_frame_of_a_client_has_a_schema() -> None:
    assert list(CLIENT) == list(KINDS)
    assert len(get_args(commands.Command)) == len(CLIENT)  # two commands are an `ack`, one is both kinds of publish


def test_every_frame_of_a_server_has_a_schema() -> None:
    kinds = {schema["properties"]["type"]["const"] for schema in SERVER.values()}
    assert len(kinds) == len(get_args(frames.ServerFrame))
    for kind in CLIENT:
        assert f"ok {kind}" in SERVER


def _frames(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    names = [name for name in CLIENT[kind]["properties"] if name != "type"]
    return st.dictionaries(st.sampled_from(names), st.sampled_from(VALUES), max_size=4).map(
        lambda fields: {"type": kind, **fields}
    )


@settings(max_examples=500)
@given(st.sampled_from(list(CLIENT)).flatmap(_frames))
def test_what_the_parser_takes_fits_and_what_it_calls_bad_does_not(frame: dict[str, Any]) -> None:
    [command] = parse_client_frame(json.dumps(frame), LIMITS)
    check_client_frame(frame, command, LIMITS)


def test_what_does_not_fit_is_told() -> None:
    assert fault(SERVER["pong"], {"type": "pong"}) is None
    assert fault(SERVER["pong"], {"type": "pong", "id": "1"}) is not None
