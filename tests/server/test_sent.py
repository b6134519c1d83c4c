"""What was sent to a subscription, remembered without remembering every event."""

from __future__ import annotations

from uuid import UUID

from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.channel import Gap
from eventbus_fastapi.server.sent import Sent

ID = UUID(int=1)


def messages(*seqs: int) -> list[Message]:
    return [Message(seq, ID, "a", None, b"", "text/plain", None, 0) for seq in seqs]


def test_nothing_was_sent_at_first() -> None:
    assert Sent(after=5).up_to(100) == []


def test_everything_since_the_start_is_one_run() -> None:
    sent = Sent(after=5)
    sent.note(messages(6, 7))
    sent.note(messages(20))

    assert sent.up_to(100) == [(5, 20)]
    assert sent.up_to(7) == [(5, 7)]
    assert sent.up_to(5) == []


def test_events_that_are_not_stored_have_no_place() -> None:
    sent = Sent(after=5)
    sent.note(messages(6, 0))
    sent.note(messages(0))

    assert sent.up_to(100) == [(5, 6)]


def test_what_a_gap_left_out_was_not_sent() -> None:
    sent = Sent(after=0)
    sent.note(messages(1, 2))
    sent.note_gap(Gap(3, 10, "overflow"))
    sent.note_gap(Gap(11, 12, "overflow"))
    sent.note(messages(13, 14))

    assert sent.up_to(100) == [(0, 2), (12, 14)]
    assert sent.up_to(13) == [(0, 2), (12, 13)]


def test_what_was_acknowledged_is_not_returned_again() -> None:
    sent = Sent(after=0)
    sent.note(messages(1, 2))
    sent.note_gap(Gap(3, 10, "overflow"))
    sent.note(messages(11, 20))

    sent.forget(15)
    assert sent.up_to(100) == [(15, 20)]
    sent.forget(100)
    assert sent.up_to(200) == []
    sent.note(messages(21))
    assert sent.up_to(200) == [(20, 21)]
