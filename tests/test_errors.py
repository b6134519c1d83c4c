"""The tree of errors: what each says to a remote program, and that the documents know all of them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from eventbus_fastapi import errors
from eventbus_fastapi.errors import (
    AccessDenied,
    BatchTooLarge,
    BrokerError,
    ClientError,
    EventBusError,
    HandlerError,
    HandlerTimeout,
    InvalidHandler,
    InvalidInput,
    InvalidTopic,
    LogGap,
    NotReady,
    PayloadTooLarge,
    ProtocolError,
    RemoteError,
    SettingsError,
    StoreUnavailable,
    TooMany,
    quote,
)

PROTOCOL = Path(__file__).parent.parent / "docs" / "protocol.md"

ALL = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, EventBusError)]
"""Every class of the tree."""
FAMILIES = {EventBusError, InvalidInput, ProtocolError, TooMany, AccessDenied, ClientError, HandlerError}
"""Classes that are caught and never raised."""
CONCRETE = [each for each in ALL if each not in FAMILIES]
STAYS_HERE = (BrokerError, ClientError, HandlerError, SettingsError, LogGap, errors.NotForwarded)
"""What never leaves the process: on the wire a gap is a frame of its own."""

ARGUMENTS: dict[type[EventBusError], tuple[Any, ...]] = {
    errors.InvalidTopic: ("a..b", "segment 2 is empty"),
    errors.InvalidPattern: ("a..b", "segment 2 is empty"),
    errors.PayloadTooLarge: (11, 10),
    errors.BatchTooLarge: (11, 10),
    errors.FrameTooLarge: (11, 10),
    errors.BodyTooLarge: (10,),
    errors.BodyTooSlow: (10,),
    errors.PublishTooFast: (10_000, 0.4),
    errors.BinaryFrame: (),
    errors.InvalidCloudEvent: ("id", "it is missing"),
    errors.LogGap: (1, 5, "retention"),
    errors.NotForwarded: (3, "no connection"),
    errors.NotReady: (["the listener is not alive"],),
    errors.InvalidHandler: ("shop.send", "there is no parameter for the event"),
    errors.UndecodablePayload: ("shop.send", "payload does not fit Order: id: Field required"),
    errors.HandlerTimeout: ("shop.send", 1.5),
    errors.HandlerCancelled: ("shop.send",),
    errors.InvalidOutcome: ("shop.send", {}),
    errors.RemoteError: ({"code": "topic.invalid", "status": 422, "message": "no", "retry": False},),
}
"""How to make those that are made from facts; the others are made from a message."""


def make(error: type[EventBusError]) -> EventBusError:
    return error(*ARGUMENTS.get(error, ("this went wrong",)))


@pytest.mark.parametrize("error", CONCRETE)
def test_an_error_describes_itself_as_the_wire_shows_it(error: type[EventBusError]) -> None:
    made = make(error)
    described = made.describe()
    members = {"code": made.code, "status": made.status, "message": str(made), "retry": made.retry}
    assert described.items() >= members.items()
    assert described.keys() - members.keys() <= {"retry_after", "problems", "seqs"}
    assert described["message"]
    assert 400 <= described["status"] <= 599


@pytest.mark.parametrize("error", ALL)
def test_a_code_is_two_lower_case_words_or_so(error: type[EventBusError]) -> None:
    assert re.fullmatch(r"[a-z]+\.[a-z_]+", error.code)


def test_no_two_errors_share_a_code() -> None:
    codes = Counter(error.code for error in CONCRETE if error is not RemoteError)  # that one has the server's
    assert [code for code, count in codes.items() if count > 1] == []


@pytest.mark.parametrize("error", ALL)
def test_an_error_has_a_docstring_and_a_place_in_the_tree(error: type[EventBusError]) -> None:
    assert error.__doc__
    assert re.search(rf"\b{error.__name__}\b", errors.__doc__ or "")


def documented() -> dict[str, int]:
    """The codes in the protocol's table, with their status."""
    rows = re.findall(
        r"^\| (`[a-z]+\.[a-z_]+`(?:, `[a-z]+\.[a-z_]+`)*) \| (\d{3}) \|", PROTOCOL.read_text(), re.MULTILINE
    )
    return {code: int(status) for codes, status in rows for code in re.findall(r"`([^`]+)`", codes)}


def test_the_protocol_lists_every_code_that_can_reach_the_wire_and_no_other() -> None:
    on_the_wire = {error for error in CONCRETE if not issubclass(error, STAYS_HERE)} | {EventBusError}
    assert documented() == {error.code: error.status for error in on_the_wire}


def test_advice_when_to_retry_is_part_of_the_description() -> None:
    assert StoreUnavailable("no connection").describe()["retry_after"] == 1.0
    assert "retry_after" not in InvalidTopic("", "it is empty").describe()


def test_what_is_not_ready_is_listed() -> None:
    error = NotReady(["the schema is outdated", "the listener is not alive"])
    assert str(error) == "not ready: the schema is outdated; the listener is not alive"
    assert error.describe()["problems"] == ["the schema is outdated", "the listener is not alive"]


def test_an_error_of_the_server_keeps_its_facts_at_the_client() -> None:
    served = StoreUnavailable("the database does not answer")
    assert RemoteError(served.describe()).describe() == served.describe()


def test_messages_are_built_from_facts() -> None:
    assert str(PayloadTooLarge(1_310_720, 1_048_576)) == (
        "payload is 1,310,720 bytes, limit is 1,048,576 (EVENTBUS_MAX_PAYLOAD)"
    )
    assert str(BatchTooLarge(1_001, 1_000)) == "batch has 1,001 events, limit is 1,000 (EVENTBUS_MAX_BATCH)"
    assert str(InvalidTopic("orders.", "segment 2 is empty")) == "invalid topic 'orders.': segment 2 is empty"
    assert str(HandlerTimeout("shop.send", 300)) == "handler 'shop.send' did not end within 300 seconds"
    assert str(InvalidHandler("shop.send", "no", chain=("db=Depends(get_db)", "url: str"))) == (
        "handler 'shop.send': db=Depends(get_db) → url: str: no"
    )
    assert str(LogGap(1, 5, "retention")) == "events 1 to 5 are not available (retention)"
    assert str(LogGap(0, 0, "epoch")) == "the log was made anew; what is read now is its beginning (epoch)"


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nb\x1b\u202e", "'a\\nb\\x1b\\u202e'"),
        ("x" * 1_000_000, "'" + "x" * 78 + "…"),
        (b"x" * 1_000_000, "b'" + "x" * 77 + "…"),
        ([1] * 1_000, ascii([1] * 1_000)[:79] + "…"),
        (pytest.param(10**5_000, "<int>", id="huge")),
        (Unshowable(), "<Unshowable>"),
        (None, "None"),
    ],
)
def test_a_foreign_value_is_shown_escaped_and_short_whatever_it_is(value: object, shown: str) -> None:
    assert quote(value) == shown
