"""A run carries events of the log from one node to the others, exactly as they are in the log."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.run import RUN_BYTES, Run, cut_runs

EPOCH = uuid4()
MEBIBYTE = 1_048_576


def message(seq: int, body: bytes = b"{}", **fields: Any) -> Message:
    values: dict[str, Any] = {
        "topic": "test.event",
        "key": None,
        "content_type": "application/json",
        "metadata_json": None,
        "created_at": 1_700_000_000_000_000,
        "expires_at": None,
    }
    return Message(seq, uuid4(), body=body, **{**values, **fields})


def fields_of(message: Message) -> list[Any]:
    names = ["seq", "message_id", "topic", "key", "body", "content_type", "metadata_json", "created_at", "expires_at"]
    return [getattr(message, name) for name in names]


def carried(run: Run, epoch: Any = EPOCH) -> Run:
    decoded = Run.decode(run.encode(epoch, MEBIBYTE), EPOCH)
    assert decoded is not None
    return decoded


DIFFERENT = [
    message(5, b'{"a":1}'),
    message(6, bytes(range(256)), content_type="application/octet-stream", expires_at=1_700_000_000_000_001),
    message(9, "héllo\0".encode(), topic="übrig", key="ключ", content_type="text/plain"),
    message(10, b"", metadata_json='{"tags":["a"],"traceparent":"00-é"}', created_at=2**62),
]


@pytest.mark.parametrize("messages", [DIFFERENT, DIFFERENT[1:2], [message(seq) for seq in range(1, 1_001)]])
def test_what_is_carried_is_what_the_log_has(messages: list[Message]) -> None:
    run = carried(Run(messages[0].seq, messages[-1].seq, messages))
    assert run.messages is not None
    assert [fields_of(each) for each in run.messages] == [fields_of(each) for each in messages]


def test_it_says_what_it_is_about_also_where_the_log_holds_nothing_any_more() -> None:
    run = carried(Run(3, 20, DIFFERENT))
    assert (run.first, run.last) == (3, 20)
    empty = carried(Run(3, 20, []))
    assert (empty.first, empty.last, empty.messages) == (3, 20, [])


def test_only_what_comes_after_a_position_is_taken() -> None:
    run = carried(Run(5, 10, DIFFERENT))
    assert [each.seq for each in run.after(6) or ()] == [9, 10]
    assert [each.seq for each in run.after(2) or ()] == [5, 6, 9, 10]


def test_what_is_too_large_for_a_message_says_that_the_log_has_it() -> None:
    encoded = Run(1, 1, [message(1, bytes(5_000))]).encode(EPOCH, 4_000)
    assert len(encoded) < 100
    run = Run.decode(encoded, EPOCH)
    assert run is not None
    assert (run.first, run.last, run.messages, run.after(0)) == (1, 1, None, None)


def test_a_run_of_another_log_is_none() -> None:
    encoded = Run(5, 10, DIFFERENT).encode(uuid4(), MEBIBYTE)
    assert Run.decode(encoded, EPOCH) is None


@pytest.mark.parametrize("encoded", [b"", b"hello", bytes(200), b"\xff" * 200])
def test_what_is_no_run_is_none(encoded: bytes) -> None:
    assert Run.decode(encoded, EPOCH) is None


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_of_a_damaged_one_the_log_is_read(cut: int) -> None:
    encoded = Run(5, 10, DIFFERENT).encode(EPOCH, MEBIBYTE)
    run = Run.decode(encoded[:-cut], EPOCH)
    assert run is not None
    assert (run.first, run.last, run.messages) == (5, 10, None)


@pytest.mark.parametrize("seqs", [(4, 6), (6, 11), (6, 6), (7, 6)])
def test_one_whose_events_are_not_in_its_line_is_damaged(seqs: tuple[int, int]) -> None:
    encoded = Run(5, 10, [message(seq) for seq in seqs]).encode(EPOCH, MEBIBYTE)
    run = Run.decode(encoded, EPOCH)
    assert run is not None
    assert run.messages is None


def test_many_events_are_cut_into_runs_that_fit_a_message() -> None:
    messages = [message(seq, bytes(50_000)) for seq in range(11, 31)]
    runs = list(cut_runs(messages, 8, 40))
    assert (runs[0].first, runs[-1].last) == (8, 40)
    assert [run.first for run in runs[1:]] == [run.last + 1 for run in runs[:-1]]
    assert [each.seq for run in runs for each in run.messages or ()] == list(range(11, 31))
    assert all(len(run.encode(EPOCH, MEBIBYTE)) < RUN_BYTES + 60_000 for run in runs)


def test_no_events_are_a_run_too() -> None:
    (run,) = cut_runs([], 4, 6)
    assert (run.first, run.last, run.messages) == (4, 6, [])
