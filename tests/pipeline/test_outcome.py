"""The outcome of an attempt: what a handler's result or error becomes."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest

from eventbus_fastapi.backoff import Fixed, Sequence
from eventbus_fastapi.errors import InvalidPayload, UndecodablePayload
from eventbus_fastapi.pipeline.error_record import MAX_MESSAGE, MAX_TRACEBACK, ErrorRecord
from eventbus_fastapi.pipeline.outcome import Ack, Dead, Discard, Outcome, Retry, Snooze, decide

NOW = 1_790_000_000_000_000


def outcome(result: object, **given: Any) -> Outcome:
    """Decide on the first attempt of four, with a backoff of a minute, unless a test says otherwise."""
    usual = {"attempt": 1, "max_attempts": 4, "backoff": Fixed(60), "handler": "shop.send", "node": "n1", "now": NOW}
    return decide(result, **{**usual, **given})


def raised(exc: BaseException) -> BaseException:
    """Return the error as it comes out of a handler: with a traceback."""
    try:
        raise exc
    except BaseException as caught:  # noqa: BLE001
        return caught


def error_of(decided: Outcome) -> ErrorRecord:
    assert isinstance(decided, Retry | Dead)
    assert decided.error is not None
    return decided.error


# --- what a handler returns ---


def test_returning_nothing_acknowledges() -> None:
    assert outcome(None) == Ack()


@pytest.mark.parametrize("result", [Ack(), Snooze(5), Discard("not for us")])
def test_an_outcome_that_a_handler_returns_is_the_outcome(result: Outcome) -> None:
    assert outcome(result) is result


def test_a_snooze_and_a_discard_are_taken_from_the_last_attempt_too() -> None:
    assert outcome(Snooze(5), attempt=4) == Snooze(5)
    assert outcome(Discard("no"), attempt=4) == Discard("no")


def test_a_retry_says_itself_when() -> None:
    decided = outcome(Retry(timedelta(minutes=2), "the mail server is busy"))
    assert isinstance(decided, Retry)
    assert (decided.after, decided.reason) == (120.0, "the mail server is busy")


def test_a_retry_that_does_not_say_when_asks_the_backoff() -> None:
    decided = outcome(Retry())
    assert isinstance(decided, Retry)
    assert decided.after == 60.0


def test_a_retry_of_the_last_attempt_is_a_dead_letter_with_the_reason() -> None:
    decided = outcome(Retry(5, "the mail server is busy"), attempt=4)
    assert decided == Dead(ErrorRecord("Retry", "the mail server is busy", time=NOW, node="n1", attempt=4))


@pytest.mark.parametrize(
    ("returned", "named"), [(False, "bool"), ({"sent": 1}, "dict"), (Retry, "the class Retry"), ("", "str")]
)
def test_anything_else_is_a_dead_letter_at_once_as_the_work_was_done(returned: object, named: str) -> None:
    decided = outcome(returned)
    assert isinstance(decided, Dead)
    assert decided.error.message == (
        f"handler 'shop.send' returned {named}; expected None (ack), Retry(…), Snooze(…) or Discard(…)"
    )


@pytest.mark.parametrize("after", [0, -1, math.nan, math.inf, "5", True, None])
def test_a_snooze_needs_a_time_above_nothing(after: Any) -> None:
    with pytest.raises(ValueError, match="after must be"):
        Snooze(after)


@pytest.mark.parametrize("after", [-1, math.nan, math.inf, "5", True])
def test_a_retry_takes_no_time_that_is_none(after: Any) -> None:
    with pytest.raises(ValueError, match="after must be"):
        Retry(after)


# --- what a handler raises ---


def test_an_error_asks_the_backoff_with_the_number_of_the_attempt() -> None:
    asked: list[int] = []

    def backoff(attempt: int) -> float:
        asked.append(attempt)
        return attempt * 10

    decided = outcome(raised(ValueError("no")), attempt=3, backoff=backoff)
    assert isinstance(decided, Retry)
    assert (decided.after, asked) == (30.0, [3])


def test_three_retries_are_four_attempts() -> None:
    assert isinstance(outcome(raised(ValueError()), attempt=3, max_attempts=4), Retry)
    assert isinstance(outcome(raised(ValueError()), attempt=4, max_attempts=4), Dead)


def test_a_backoff_that_returns_none_gives_up() -> None:
    assert isinstance(outcome(raised(ValueError()), backoff=lambda attempt: None), Dead)
    assert isinstance(outcome(raised(ValueError()), attempt=2, backoff=Sequence([60])), Dead)


def test_a_backoff_may_return_a_timedelta() -> None:
    decided = outcome(raised(ValueError()), backoff=lambda attempt: timedelta(hours=1))
    assert isinstance(decided, Retry)
    assert decided.after == 3600.0


def fail(attempt: int) -> float:
    raise KeyError("delays")


@pytest.mark.parametrize("backoff", [fail, lambda attempt: -1.0, lambda attempt: "soon", lambda attempt: math.inf])
def test_a_backoff_that_fails_is_replaced_by_the_default_and_the_error_says_so(backoff: Any) -> None:
    decided = outcome(raised(ValueError("no stock")), backoff=backoff)
    assert isinstance(decided, Retry)
    assert decided.after is not None
    assert 5 <= decided.after <= 10
    assert error_of(decided).message.startswith("no stock (the backoff failed (")


def test_a_payload_that_cannot_be_decoded_is_a_dead_letter_at_once() -> None:
    decided = outcome(raised(UndecodablePayload("shop.send", "payload does not fit Order: id: Field required")))
    assert isinstance(decided, Dead)
    assert decided.error.message == "payload does not fit Order: id: Field required"


# --- the record of an error ---


def test_the_record_says_what_where_and_when() -> None:
    record = error_of(outcome(raised(ValueError("no stock")), attempt=2))
    assert (record.type, record.message) == ("ValueError", "no stock")
    assert (record.time, record.node, record.attempt) == (NOW, "n1", 2)
    assert record.traceback.startswith("Traceback (most recent call last):")
    assert record.traceback.endswith("ValueError: no stock\n")
    assert "test_outcome.py" in record.traceback


def test_a_class_of_the_program_is_named_with_its_module() -> None:
    assert error_of(outcome(raised(InvalidPayload("no")))).type == "eventbus_fastapi.errors.InvalidPayload"


def test_an_error_without_a_place_has_no_traceback() -> None:
    assert error_of(outcome(ValueError("no"))).traceback == ""


def test_a_record_is_read_back_as_it_was_stored() -> None:
    record = error_of(outcome(raised(ValueError("größer"))))
    assert ErrorRecord.from_json(record.to_json()) == record


def test_a_later_version_may_know_more_of_an_error() -> None:
    assert ErrorRecord.from_json('{"type": "ValueError", "message": "no", "severity": 1}').message == "no"


@pytest.mark.parametrize("text", ["", "[]", '{"type": 1}', '{"type": "ValueError", "message": null}'])
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(InvalidPayload):
        ErrorRecord.from_json(text)


def recurse() -> None:
    recurse()


def test_a_record_is_of_bounded_length() -> None:
    long = error_of(outcome(raised(ValueError("x" * 1_000_000))))
    assert len(long.message) == MAX_MESSAGE
    assert len(long.traceback) == MAX_TRACEBACK
    with pytest.raises(RecursionError) as caught:
        recurse()
    assert "recurse()" in error_of(outcome(caught.value)).traceback
    assert len(error_of(outcome(caught.value)).traceback) <= MAX_TRACEBACK


class Unshowable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("exc", [Unshowable(), ValueError("\0 \udc80"), ExceptionGroup("all", [ValueError("\udc80")])])
def test_any_error_can_be_stored(exc: Exception) -> None:
    record = error_of(outcome(raised(exc)))
    assert ErrorRecord.from_json(record.to_json()) == record
    assert "\\u0000" not in record.to_json()
