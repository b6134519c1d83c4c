"""Strangers' text: every character is seen, JSON is laid out as it was written, bytes are bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus_fastapi.dashboard.shown import CUT, DEEPEST, beginning_of, laid_out, shown_payload, visible

JSON = "application/json"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("<b>&'\"", "&lt;b&gt;&amp;&#39;&#34;"),
        ("a\tb\nc", "a\tb\nc"),
        ("a\u202eb", 'a<span class="hidden">U+202E</span>b'),
        ("\x00", '<span class="hidden">U+0000</span>'),
        ("\r", '<span class="hidden">U+000D</span>'),
        ("Grüße 世界 🚀", "Grüße 世界 🚀"),
    ],
)
def test_text_is_shown_as_what_it_is(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text())
def test_no_text_becomes_an_element_or_turns_a_line_around(text: str) -> None:
    shown = str(visible(text)).replace('<span class="hidden">', "").replace("</span>", "")
    assert "<" not in shown
    assert not set(shown) & {"\u202a", "\u202b", "\u202d", "\u202e", "\u2066", "\u2067", "\u200b", "\x00", "\x1b"}


def test_a_long_text_is_cut_before_it_is_escaped() -> None:
    assert visible("<" * 100, 2) == "&lt;&lt;…"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(values)
def test_json_that_is_laid_out_is_the_same_json(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, indent=3), json.dumps(value, ensure_ascii=False)):
        assert json.loads(laid_out(text)) == value
        assert laid_out(text) == json.dumps(json.loads(text), indent=2, ensure_ascii="\\u" in text) or "\\" in text


def test_numbers_stay_as_they_were_written() -> None:
    assert laid_out('{"a":1.0,"b":1e400,"c":[],"d":{}}') == '{\n  "a": 1.0,\n  "b": 1e400,\n  "c": [],\n  "d": {}\n}'


@given(st.text(alphabet='"\\{}[],: a\n'))
def test_nothing_is_lost_of_what_is_no_json(text: str) -> None:
    assert "".join(laid_out(text).split()) == "".join(text.split())


@pytest.mark.parametrize("text", ["[" * 100_000, '"' + '\\"' * 100_000, '"\\' * 100_000, ("[" * DEEPEST) + "1"])
def test_what_is_built_to_be_slow_is_not(text: str) -> None:
    assert laid_out(text)


def test_payloads_are_json_text_or_bytes() -> None:
    assert shown_payload(b'{"a":1}', JSON) == ("json", '{\n  "a": 1\n}', False)
    assert shown_payload("é".encode(), "text/plain") == ("text", "é", False)
    assert shown_payload(b"\xff", "text/plain").kind == "bytes"
    assert shown_payload(b"\x00A\xff" + b"z" * 14, "image/png").text == (
        "00000000  00 41 ff 7a 7a 7a 7a 7a 7a 7a 7a 7a 7a 7a 7a 7a  ·A·zzzzzzzzzzzzz\n"
        "00000010  7a                                               z"
    )


@pytest.mark.parametrize("content_type", ["text/plain", JSON, "image/png"])
def test_a_long_payload_is_cut_unless_all_of_it_is_asked_for(content_type: str) -> None:
    body = json.dumps("x" * 2 * CUT).encode()

    cut, whole = shown_payload(body, content_type), shown_payload(body, content_type, whole=True)

    assert (cut.is_cut, whole.is_cut) == (True, False)
    assert len(cut.text) <= CUT
    assert len(whole.text) > 2 * CUT


def test_the_beginning_of_a_payload_is_one_line() -> None:
    assert beginning_of(b'{"a":', JSON, 100) == '{"a":…'
    assert beginning_of("aé".encode()[:2], "text/plain", 3) == "a…"
    assert beginning_of(b"\xff\xd8", "image/jpeg", 12_345) == "12,345 bytes"
