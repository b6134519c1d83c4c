"""Payloads, content types, foreign JSON, metadata and ids: what is kept exactly, and what is refused and why."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, computed_field, field_serializer
from typing_extensions import TypedDict

from eventbus_fastapi import codec
from eventbus_fastapi.errors import InvalidEvent, InvalidPayload, PayloadTooLarge


class User(BaseModel):
    id: int
    name: str = Field("", alias="userName")


@dataclasses.dataclass
class Point:
    x: float
    y: float


class Colour(Enum):
    RED = "red"


class Reading(BaseModel):
    value: float | None = None
    note: Any = None


class Readings(TypedDict):
    first: Reading


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


# --- what becomes of a payload -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "content_type", "stored"),
    [
        ({"id": 1}, None, (b'{"id":1}', "application/json")),
        (None, None, (b"null", "application/json")),
        (5, None, (b"5", "application/json")),
        ("grüß", None, ("grüß".encode(), "text/plain")),
        (b"\x00\xff", None, (b"\x00\xff", "application/octet-stream")),
        (bytearray(b"x"), None, (b"x", "application/octet-stream")),
        (memoryview(b"x"), None, (b"x", "application/octet-stream")),
        ("text", "application/json", (b'"text"', "application/json")),
        (b'{"a" : 1.0}', "application/json", (b'{"a" : 1.0}', "application/json")),
        ({"a": 1}, "application/vnd.api+json", (b'{"a":1}', "application/vnd.api+json")),
        ("<b>", "text/html; charset=utf-8", (b"<b>", "text/html; charset=utf-8")),
        (b"<b>", "text/html", (b"<b>", "text/html")),
        (b"\xff", "image/png", (b"\xff", "image/png")),
        ("<a/>", "application/xml", (b"<a/>", "application/xml")),
    ],
)
def test_a_payload_is_stored_by_its_type_and_content_type(
    payload: object, content_type: str | None, stored: tuple[bytes, str]
) -> None:
    assert codec.encode(payload, content_type) == stored


@pytest.mark.parametrize(
    ("payload", "stored"),
    [
        (User(id=1, userName="Ada"), b'{"id":1,"userName":"Ada"}'),
        (Point(1, 2.5), b'{"x":1,"y":2.5}'),
        (datetime(2026, 1, 2, tzinfo=UTC), b'"2026-01-02T00:00:00Z"'),
        (UUID(int=1), b'"00000000-0000-0000-0000-000000000001"'),
        (Decimal("1.50"), b'"1.50"'),
        (Colour.RED, b'"red"'),
        ({"points": (Point(0, 0),)}, b'{"points":[{"x":0,"y":0}]}'),
        (frozenset({1}), b"[1]"),
        (iter([1, 2]), b"[1,2]"),
        ({1: None}, b'{"1":null}'),
    ],
)
def test_what_pydantic_writes_as_json_is_a_payload(payload: object, stored: bytes) -> None:
    assert codec.encode(payload) == (stored, "application/json")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_json_values_come_back_as_they_went_in(value: Any) -> None:
    body, content_type = codec.encode(value, codec.JSON, max_depth=100)
    assert codec.decode(body, content_type) == value
    assert codec.parse_json(body, max_depth=100) == value
    assert json.loads(body) == value


@given(st.text())
def test_text_comes_back_as_it_went_in(text: str) -> None:
    assert codec.decode(*codec.encode(text)) == text


@given(st.binary())
def test_bytes_come_back_as_they_went_in(body: bytes) -> None:
    assert codec.decode(*codec.encode(body)) == body


# --- payloads that are refused -------------------------------------------------------------------


def refusal(payload: object, content_type: str | None = None, max_depth: int = 32) -> str:
    with pytest.raises(InvalidPayload) as refused:
        codec.encode(payload, content_type, max_depth=max_depth)
    return str(refused.value)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (math.nan, "payload has NaN at $"),
        ({"a": [1, math.inf]}, "payload has an infinite number at $.a[1]"),
        ({"a": {"b": -math.inf}}, "payload has an infinite number at $.a.b"),
        (Point(0, math.nan), "payload has NaN at $.y"),
        ({"a": "\ud800"}, "payload has a lone surrogate at $.a"),
        ({"a": {"\udfff": 1}}, "payload has a lone surrogate at a name in $.a"),
        (User(id=1, userName="\ud800"), "payload has a lone surrogate at $.name"),
        (Point("\ud800", 0), "payload has a lone surrogate at $.x"),  # type: ignore[arg-type]
        ("a\ud800", "payload has the lone surrogate '\\ud800' at character 1"),
        ({"a": b"\xff"}, "payload has bytes that are not UTF-8 at $.a"),
        ({"a": 10**4300}, "payload has an integer of more than 4,300 digits"),
    ],
)
def test_what_json_does_not_have_is_refused_with_its_place(payload: object, message: str) -> None:
    assert refusal(payload) == message


@pytest.mark.parametrize(
    "payload",
    ["NaN", {"Infinity": "-Infinity"}, [None, "NaN"], {"digits": "1" * 5000}, {"brackets": "[{" * 100}, 10**4299],
)
def test_a_text_that_looks_like_it_is_not_refused(payload: object) -> None:
    body, _ = codec.encode(payload, codec.JSON)
    assert codec.decode(body, codec.JSON) == payload
    assert codec.parse_json(body) == payload


@pytest.mark.parametrize(
    ("payload", "place"),
    [
        (Reading(value=math.nan), "NaN at $.value"),
        (Reading(note=Reading(value=math.inf)), "an infinite number at $.note.value"),
        (Reading(note=[1, Reading(value=math.nan)]), "NaN at $.note[1].value"),
        (Reading(note={"a": Point(0, math.nan)}), "NaN at $.note.a.y"),
        (Reading(value=None, note=math.nan), "NaN at $.note"),
        ({"a": [None, "null", Reading(value=-math.inf)]}, "an infinite number at $.a[2].value"),
        ((each for each in [None, Reading(value=math.nan)]), "NaN at $[1].value"),
        (Readings(first=Reading(value=math.nan)), "NaN at $.first.value"),
        (Point(Reading(value=math.nan), 0), "NaN at $.x.value"),  # type: ignore[arg-type]
    ],
)
def test_what_a_model_would_write_as_null_is_refused_unless_it_is_none(payload: object, place: str) -> None:
    assert refusal(payload) == f"payload has {place}"


def test_a_model_that_writes_nan_in_its_own_way_keeps_it() -> None:
    class Spelt(BaseModel, ser_json_inf_nan="strings"):
        value: float = math.nan
        other: None = None

    class Rounded(BaseModel):
        value: float = math.nan

        @computed_field
        def other(self) -> None: ...

        @field_serializer("value")
        def write(self, value: float) -> float:
            return 0.0 if math.isnan(value) else value

    assert codec.encode([Spelt(), Rounded(), None]) == (
        b'[{"value":"NaN","other":null},{"value":0.0,"other":null},null]',
        codec.JSON,
    )


def test_none_is_written_as_null_in_whatever_pydantic_writes() -> None:
    payload = {"a": Reading(note=[None, User(id=1), Point(1, 2)]), "b": (None, "null"), "c": frozenset({None})}
    stored = b'{"a":{"value":null,"note":[null,{"id":1,"userName":""},{"x":1,"y":2}]},"b":[null,"null"],"c":[null]}'
    assert codec.encode(payload) == (stored, codec.JSON)
    assert codec.encode(each for each in [None, 1]) == (b"[null,1]", codec.JSON)


def test_a_null_in_an_iterator_within_is_refused_as_nobody_can_look_at_it_again() -> None:
    assert "null in an iterator" in refusal({"rows": (each for each in [None])})
    assert codec.encode({"rows": (each for each in [1, 2])})[0] == b'{"rows":[1,2]}'


class Twins(BaseModel, extra="allow"):
    name: int = Field(1, serialization_alias="id")


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        ({1: "first", "1": "second"}, "1"),
        ({True: 1, "true": 2}, "true"),
        ({Colour.RED: 1, "red": 1}, "red"),
        ([{"a:b": [{None: 1, "None": {}}]}], "None"),
        (Twins.model_validate({"id": 2}), "id"),
        (Reading(note={1.5: 1, "1.5": 2}), "1.5"),
    ],
)
def test_an_object_that_would_have_a_name_twice_is_refused(payload: object, name: str) -> None:
    assert refusal(payload) == f"payload has an object with the name '{name}' twice"


def test_names_that_are_no_strings_are_written_as_strings() -> None:
    assert codec.encode({1: {"1": 2}, 2: {"1": ":"}})[0] == b'{"1":{"1":2},"2":{"1":":"}}'


def test_an_object_of_unknown_type_is_refused_with_what_was_expected() -> None:
    class Socket:
        pass

    message = refusal({"users": [1, Socket()]})
    assert re.match(r"payload has a value of type .*Socket at \$\.users\[1\]; expected a Pydantic model, ", message)


def test_a_payload_that_contains_itself_is_refused() -> None:
    payload: dict[str, Any] = {"\ud800": 1}
    payload["self"] = [payload]
    assert refusal(payload) == "payload has a lone surrogate at a name in $"
    del payload["\ud800"]
    assert refusal(payload) == "payload contains itself"


@pytest.mark.parametrize("levels", [33, 150, 201, 250, 300, 100_000])
def test_a_payload_that_is_too_deep_is_refused(levels: int) -> None:
    assert refusal(nested(levels)) == "payload is nested deeper than 32 levels"


def test_depth_counts_arrays_and_objects_that_contain_each_other() -> None:
    assert refusal({"a": [{"b": []}]}, max_depth=3) == "payload is nested deeper than 3 levels"
    codec.encode({"a": [{"b": []}]}, max_depth=4)


def test_many_brackets_beside_each_other_are_not_deep() -> None:
    codec.encode([[{}], [], {"a": [[]]}] * 1000, max_depth=4)


def test_brackets_and_quotes_within_strings_are_not_depth() -> None:
    codec.encode([{'\\"[[[': '"\\\\[[[{{{'}] * 20, max_depth=2)


def test_what_can_be_written_can_be_read_whatever_depth_is_allowed() -> None:
    body, content_type = codec.encode(nested(200), max_depth=10_000)
    assert codec.decode(body, content_type) == nested(200)
    assert refusal(nested(201), max_depth=10_000) == "payload is nested deeper than 200 levels"
    assert refusal(nested(202), max_depth=10_000) == "payload is nested deeper than 200 levels"


def depth(value: Any) -> int:
    """How deep arrays and objects are nested: the definition, word for word."""
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


DEEP = st.recursive(
    st.sampled_from([0, None, "[", '\\"{{', "]]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "[{", '"']), inner, max_size=2),
    max_leaves=30,
)


@given(DEEP, st.integers(1, 6), st.sampled_from([None, 1]))
def test_depth_is_what_the_definition_says(value: Any, max_depth: int, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    is_refused = depth(value) > max_depth
    for take in (lambda: codec.encode(value, codec.JSON, max_depth=max_depth), lambda: parse_at(text, max_depth)):
        if is_refused:
            with pytest.raises(InvalidPayload, match=f"nested deeper than {max_depth} levels"):
                take()
        else:
            take()


def parse_at(text: str, max_depth: int) -> Any:
    return codec.parse_json(text, max_depth=max_depth)


@pytest.mark.parametrize("text", ["[1],[2]", "[1]]" + ",[" * 9 + "[2]", "]" * 9, "[" * 9, "", '["]]]]]]'])
def test_brackets_that_do_not_belong_together_are_no_json_at_any_depth(text: str) -> None:
    with pytest.raises(InvalidPayload, match="is not JSON: "):
        parse_at(text, 1)


def test_reading_many_containers_does_not_start_the_garbage_collector_each_thousand() -> None:
    """A MiB of `[[],[],…]` took 200 ms and more, in which the event loop stood still, nearly all in the collector."""
    starts: list[str] = []
    gc.callbacks.append(lambda phase, _: starts.append(phase))
    try:
        codec.parse_json("[" + "[]," * 100_000 + "0]")
    finally:
        gc.callbacks.pop()
    assert len(starts) < 10
    assert gc.isenabled()


def test_a_serializer_of_the_program_that_fails_is_a_refusal() -> None:
    class Broken(BaseModel):
        id: int = 1

        @field_serializer("id")
        def write(self, value: int) -> int:
            raise KeyError("no such id")

    assert "no such id" in refusal(Broken())


def test_an_iterator_that_fails_is_a_refusal() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise OSError("disk on fire")

    assert refusal(numbers()).startswith("payload cannot be written as JSON: ")


def test_an_iterator_with_an_unknown_object_is_a_refusal() -> None:
    assert "value of type object at $[0]" in refusal(each for each in [object()])
    assert "cannot write as JSON" in refusal({"within": (each for each in [object()])})


def test_a_container_of_the_program_that_fails_is_a_refusal() -> None:
    class Broken(dict[str, Any]):
        def items(self) -> Any:
            raise OSError("disk on fire")

    assert refusal(Broken(a="\ud800")) == "payload has a lone surrogate"


@pytest.mark.parametrize(
    ("payload", "content_type", "message"),
    [
        (b"{", "application/json", "payload is not JSON: EOF while parsing an object at line 1 column 1"),
        (b"\xff", "text/plain", "payload is not UTF-8: byte 0xff at 0"),
        (5, "text/plain", "payload of content type text/plain must be str or bytes, got int"),
        ({}, "image/png", "payload of content type image/png must be str or bytes, got dict"),
    ],
)
def test_a_payload_that_is_not_what_its_content_type_says_is_refused(
    payload: object, content_type: str, message: str
) -> None:
    assert refusal(payload, content_type) == message


@given(
    st.recursive(
        st.none() | st.floats() | st.integers() | st.text(st.characters(codec=None)) | st.binary() | st.builds(object),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner),
        max_leaves=15,
    )
)
def test_any_payload_is_stored_readable_or_refused_as_invalid(payload: object) -> None:
    try:
        body, content_type = codec.encode(payload)
    except InvalidPayload:
        return
    codec.decode(body, content_type)
    if content_type == codec.JSON:
        json.loads(body)


# --- content types -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "text/plain; charset=utf-8",
        'application/json;charset="UTF-8"',
        'multipart/mixed; boundary="a b\\"c"; x=y',
        "application/vnd.github+json",
        "text/html; charset=us-ascii",
        "application/x; charset=latin-1",
        "a/" + "b" * 125,
    ],
)
def test_a_content_type_is_kept_as_it_came(content_type: str) -> None:
    assert codec.check_content_type(content_type) == content_type


@pytest.mark.parametrize(
    ("content_type", "message"),
    [
        ("", "invalid content type '': expected type/subtype, like application/json"),
        ("json", "invalid content type 'json': expected type/subtype, like application/json"),
        ("text/", "invalid content type 'text/': expected type/subtype, like application/json"),
        (
            "text/plain\r\nx: y",
            "invalid content type 'text/plain\\r\\nx: y': expected type/subtype, like application/json",
        ),
        ("text/plain\n", "invalid content type 'text/plain\\n': expected type/subtype, like application/json"),
        ("text/pläin", "invalid content type 'text/pl\\xe4in': expected type/subtype, like application/json"),
        ("text/plain;", "invalid content type 'text/plain;': expected type/subtype, like application/json"),
        ("a/" + "b" * 126, "content type is 128 characters, limit is 127"),
        (5, "content type must be str, got int"),
        (["text/plain"], "content type must be str, got list"),
        (
            "text/plain; charset=latin-1",
            "content type 'text/plain; charset=latin-1': text is UTF-8; send other charsets as"
            " application/octet-stream",
        ),
    ],
)
def test_a_wrong_content_type_is_refused(content_type: Any, message: str) -> None:
    with pytest.raises(InvalidPayload, match=f"^{re.escape(message)}$"):
        codec.encode("x", content_type)


@pytest.mark.parametrize(
    ("content_type", "is_json", "is_text"),
    [
        ("application/json", True, False),
        ("Application/JSON; charset=utf-8", True, False),
        ("application/cloudevents+json", True, False),
        ("text/plain", False, True),
        ("TEXT/csv;header=present", False, True),
        ("application/json-seq", False, False),
        ("application/octet-stream", False, False),
        ("nonsense", False, False),
    ],
)
def test_json_and_text_are_told_by_content_type(content_type: str, is_json: bool, is_text: bool) -> None:
    assert (codec.is_json(content_type), codec.is_text(content_type)) == (is_json, is_text)


# --- decoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"{", "application/json", "payload is not JSON: EOF while parsing an object at line 1 column 1"),
        (b"NaN", "application/json", "payload is not JSON: expected value at line 1 column 1"),
        (b"\xc3", "text/plain", "payload is not UTF-8: byte 0xc3 at 0"),
    ],
)
def test_bytes_that_are_not_what_they_say_cannot_be_decoded(body: bytes, content_type: str, message: str) -> None:
    with pytest.raises(InvalidPayload, match=f"^{re.escape(message)}$"):
        codec.decode(body, content_type)


def test_json_is_decoded_as_a_model_by_alias_or_name() -> None:
    assert codec.decode_as(b'{"id":1,"userName":"Ada"}', codec.JSON, User) == User(id=1, userName="Ada")
    assert codec.decode_as(b'{"id":1,"name":"Ada"}', codec.JSON, User) == User(id=1, userName="Ada")


def test_json_is_decoded_as_any_type_that_pydantic_validates() -> None:
    class Pair(TypedDict):
        x: int

    assert codec.decode_as(b'{"x":1,"y":2}', codec.JSON, Point) == Point(1, 2)
    assert codec.decode_as(b'{"x":1}', codec.JSON, Pair) == {"x": 1}
    assert codec.decode_as(b'["2026-01-02T00:00:00Z"]', codec.JSON, list[datetime]) == [
        datetime(2026, 1, 2, tzinfo=UTC)
    ]


def test_a_type_that_cannot_be_hashed_is_a_type_like_any_other() -> None:
    kind: Any = Annotated[int, ["notes"]]
    assert codec.decode_as(b"5", codec.JSON, kind) == 5


def test_text_and_bytes_are_decoded_as_themselves() -> None:
    assert codec.decode_as(b"hello", codec.TEXT, str) == "hello"
    assert codec.decode_as(b"\xff", codec.BINARY, bytes) == b"\xff"


def test_a_payload_that_does_not_fit_says_where_but_not_what_it_held() -> None:
    with pytest.raises(InvalidPayload) as refused:
        codec.decode_as(b'{"id":"secret"}', codec.JSON, User)
    assert str(refused.value).startswith("payload does not fit User: id: Input should be a valid integer")
    assert "secret" not in str(refused.value)


def test_many_faults_are_counted() -> None:
    with pytest.raises(InvalidPayload, match=r"and 2 more$"):
        codec.decode_as(b"[null,null,null,null,null]", codec.JSON, list[int])


def test_broken_json_does_not_fit_either() -> None:
    with pytest.raises(InvalidPayload, match=r"^payload does not fit User: Invalid JSON"):
        codec.decode_as(b"{", codec.JSON, User)


# --- foreign JSON --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NaN", "it is not JSON: expected value at line 1 column 1"),
        ("[-Infinity]", "it is not JSON: invalid number at line 1 column 3"),
        ("1e400", "it has an infinite number at $: it is beyond a double's range"),
        ('{"a":[0,-1E999]}', "it has an infinite number at $.a[1]: it is beyond a double's range"),
        ("1" * 400 + ".0", "it has an infinite number at $: it is beyond a double's range"),
        ("1" * 4301, "it has an integer of more than 4,300 digits"),
        ('"\\ud800"', "it is not JSON: unexpected end of hex escape at line 1 column 8"),
        ('"\ud800"', "it has the lone surrogate '\\ud800' at character 1"),
        ("\ufeff1", "it is not JSON: it starts with a byte order mark"),
        ("1 2", "it is not JSON: trailing characters at line 1 column 3"),
        ("", "it is not JSON: EOF while parsing a value at line 1 column 0"),
        ("[1,]", "it is not JSON: trailing comma at line 1 column 4"),
        ("{'a':1}", "it is not JSON: key must be a string at line 1 column 2"),
        ("01", "it is not JSON: invalid number at line 1 column 2"),
        ('{"a":1,"a":1}', "it has an object with the name 'a' twice"),
        ('[{"b":{"a":1,"\\u0061":{}}}]', "it has an object with the name 'a' twice"),
        ('{":\\u003a":1,"\\u003A:":2}', "it has an object with the name '::' twice"),
        ("[" * 65 + "]" * 65, "it is nested deeper than 64 levels"),
        ("[" * 1_000_000, "it is nested deeper than 64 levels"),
        ('{"a":' * 65 + "1" + "}" * 65, "it is nested deeper than 64 levels"),
        (None, "it must be str or bytes of JSON, got NoneType"),
        (10**12, "it must be str or bytes of JSON, got int"),
    ],
)
def test_foreign_json_is_refused_with_the_reason(text: Any, message: str) -> None:
    with pytest.raises(InvalidPayload) as refused:
        codec.parse_json(text)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (' {"a" : [1, 2.5, null, true]}\n', {"a": [1, 2.5, None, True]}),
        ('"\\ud83d\\ude00"', "😀"),
        ('{"a:b":"c:d","\\u003a":"\\\\u003a"}', {"a:b": "c:d", ":": "\\u003a"}),
        ('{"a\\\\\\u003a":":"}', {"a\\:": ":"}),
        ('["Infinity","NaN","1e400"]', ["Infinity", "NaN", "1e400"]),
        ("1e308", 1e308),
        ("1e-400", 0.0),
        ('{"a":{"a":{"a":1}}}', {"a": {"a": {"a": 1}}}),
        (b'"\xc3\xa9"', "é"),
        (bytearray(b"1"), 1),
        ('"\\u0000"', "\0"),
    ],
)
def test_foreign_json_that_is_valid_is_read(text: Any, value: object) -> None:
    assert codec.parse_json(text) == value


def test_json_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(InvalidPayload, match=r"^it is not JSON: invalid unicode code point"):
        codec.parse_json(b'"\xff"')


def test_errors_call_the_json_what_the_caller_calls_it() -> None:
    with pytest.raises(InvalidPayload, match=r"^the frame is not JSON: "):
        codec.parse_json("{", what="the frame")


def test_a_name_twice_in_a_large_text_is_refused_without_looking_for_it() -> None:
    text = '[{"a":1,"a":2},' + "{}," * 100_000 + "0]"
    with pytest.raises(InvalidPayload, match=r"^it has an object with a name twice$"):
        codec.parse_json(text)


def strict(text: str) -> Any:
    """The same rules by the standard library, which is slower."""

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise ValueError("a name twice")
        return dict(pairs)

    def finite(number: str) -> float:
        value = float(number)
        if math.isinf(value):
            raise ValueError("beyond a double's range")
        return value

    def no_constants(constant: str) -> None:
        raise ValueError(constant)

    value = json.loads(text, object_pairs_hook=object_of, parse_float=finite, parse_constant=no_constants)
    json.dumps(value, ensure_ascii=False).encode()  # lone surrogates
    return value


NAMES = st.sampled_from(['"a"', '"b"', '":"', '"\\u003a"', '"\\\\u003a"', '"\\u0061"', '"Infinity"'])
NUMBERS = st.sampled_from(["0", "-1.5", "1e5", "1e400", "-1E+999", "9007199254740993", "NaN", "01"])
TEXTS = st.recursive(
    NUMBERS | NAMES | st.sampled_from(["null", "true", '"\\ud800"', '"\\ud83d\\ude00"', ""]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(NAMES, inner).map(":".join), max_size=3).map(lambda items: f"{{{','.join(items)}}}")
    ),
    max_leaves=10,
)


@given(TEXTS | st.text())
def test_foreign_json_is_judged_as_a_slow_and_strict_parser_does(text: str) -> None:
    def outcome(parse: Callable[[str], Any], errors: tuple[type[Exception], ...]) -> Any:
        try:
            return repr(parse(text))
        except errors:
            return "refused"

    ours = outcome(codec.parse_json, (InvalidPayload,))
    assert ours.replace("-0", "0") == outcome(strict, (ValueError, RecursionError)).replace("-0", "0")


@given(st.binary() | st.binary().map(lambda inner: b'{"a":"' + inner + b'"}'))
def test_any_bytes_are_read_or_refused_as_invalid(text: bytes) -> None:
    with contextlib.suppress(InvalidPayload):
        codec.parse_json(text)


# --- metadata ------------------------------------------------------------------------------------


def test_metadata_becomes_the_text_of_an_object() -> None:
    text = codec.encode_metadata({"trace": "abc", "at": datetime(2026, 1, 2, tzinfo=UTC)})
    assert text == '{"trace":"abc","at":"2026-01-02T00:00:00Z"}'
    assert codec.load_object(text) == {"trace": "abc", "at": "2026-01-02T00:00:00Z"}


@pytest.mark.parametrize("metadata", [None, {}])
def test_no_metadata_is_none(metadata: dict[str, Any] | None) -> None:
    assert codec.encode_metadata(metadata) is None


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"timestamp": 1}, "metadata key 'timestamp' is reserved: the bus sets it"),
        ({"content_type": "x"}, "metadata key 'content_type' is reserved: the bus sets it"),
        ({1: 1}, "metadata keys must be str, got int"),
        ([("a", 1)], "metadata must be a mapping, got list"),
        ({str(number): 1 for number in range(65)}, "metadata has 65 keys, limit is 64"),
        ({"a": "x" * 16_384}, "metadata is 16,392 bytes, limit is 16,384"),
        ({"a": math.nan}, "metadata has NaN at $.a"),
        ({"a": "\ud800"}, "metadata has a lone surrogate at $.a"),
        ({"a": nested(32)}, "metadata is nested deeper than 32 levels"),
        ({"a": {1: 2, "1": 3}}, "metadata has an object with the name '1' twice"),
        ({"a": Reading(value=math.nan)}, "metadata has NaN at $.a.value"),
    ],
)
def test_wrong_metadata_is_refused(metadata: Any, message: str) -> None:
    with pytest.raises(InvalidEvent, match=f"^{re.escape(message)}$"):
        codec.encode_metadata(metadata)


@pytest.mark.parametrize("text", ["[]", "{", "", '"\ud800"'])
def test_only_an_object_is_loaded_as_an_object(text: str) -> None:
    with pytest.raises(InvalidPayload):
        codec.load_object(text)


# --- ids -----------------------------------------------------------------------------------------


def test_a_new_message_id_is_a_uuid_of_version_7_with_the_time_in_front() -> None:
    before = time.time_ns() // 1_000_000
    message_id = codec.new_message_id()
    after = time.time_ns() // 1_000_000
    assert (message_id.version, message_id.variant) == (7, "specified in RFC 4122")
    assert before <= message_id.int >> 80 <= after


def test_new_message_ids_differ() -> None:
    assert len({codec.new_message_id() for _ in range(10_000)}) == 10_000


def test_all_random_bits_of_a_message_id_are_used() -> None:
    ids = [codec.new_message_id().int & (1 << 80) - 1 for _ in range(500)]
    ones, zeros = 0, 0
    for each in ids:
        ones |= each
        zeros |= ~each
    fixed = 0xF << 76 | 0b11 << 62
    assert ones & zeros & (1 << 80) - 1 == (1 << 80) - 1 & ~fixed


def test_a_message_id_is_a_uuid_or_its_canonical_text() -> None:
    message_id = UUID("0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3")
    assert codec.check_message_id(message_id) is message_id
    assert codec.check_message_id(str(message_id)) == message_id
    assert codec.check_message_id(str(message_id).upper()) == message_id


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        "0192f0c12d3e7a4b8c5d6e7f8091a2b3",
        "{0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3}",
        "0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3\n",
        "\u0660192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3",  # a digit, but not of ours
        5,
        None,
        b"\0" * 16,
    ],
)
def test_anything_else_is_no_message_id(value: object) -> None:
    with pytest.raises(InvalidEvent, match=r"^message_id must be a UUID, like 0192f0c1-"):
        codec.check_message_id(value)


def test_what_is_too_large_as_json_is_not_read_back() -> None:
    """Given a value that could not be read back, when it is too large as well, then that is all that is said of it."""
    with pytest.raises(PayloadTooLarge, match="21 bytes"):
        codec.encode_json([[1]] * 5, max_size=20, max_depth=1)
    assert codec.encode_json([[1]] * 5, max_size=21) == b"[[1],[1],[1],[1],[1]]"
