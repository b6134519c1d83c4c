"""What was sent to a subscription, remembered without remembering every event."""

from __future__ import annotations

from uuid import UUID

from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.channel import Gap
from eventbus_fastapi.server.sent import Sent

ID = UUID(int=1)


def messages(*seqs: int) -> list[Message]:
    return [Message(seq, ID, "a", None, b"", "text/plain", None, 0) for seq in seqs]


def runs(sent: Sent, seq: int) -> list[tuple[int, int]]:
    """Return the runs up to a seq, one after the other; each is forgotten for the next."""
    found = []
    while (run := sent.first_up_to(seq)) is not None:
        found.append(run)
        sent.forget(run[1])
    return found


def test_nothing_was_sent_at_first() -> None:
    assert Sent(after=5).first_up_to(100) is None


def test_everything_since_the_start_is_one_run() -> None:
    sent = Sent(after=5)
    sent.note(messages(6, 7))
    sent.note(messages(20))

    assert sent.first_up_to(100) == (5, 20)
    assert sent.first_up_to(7) == (5, 7)
    assert sent.first_up_to(5) is None
    assert sent.last_seq == 20


def test_events_that_are_not_stored_have_no_place() -> None:
    sent = Sent(after=5)
    sent.note(messages(6, 0))
    sent.note(messages(0))

    assert runs(sent, 100) == [(5, 6)]


def test_what_a_gap_left_out_was_not_sent() -> None:
    sent = Sent(after=0)
    sent.note(messages(1, 2))
    sent.note_gap(Gap(3, 10, "overflow"))
    sent.note_gap(Gap(11, 12, "overflow"))
    sent.note(messages(13, 14))

    assert runs(sent, 13) == [(0, 2), (12, 13)]
    assert runs(sent, 100) == [(13, 14)]


def test_a_gap_of_another_log_leaves_nothing_out_of_this_one() -> None:
    sent = Sent(after=0)
    sent.note_gap(Gap(1, 1, "epoch"))
    sent.note(messages(1, 2))

    assert runs(sent, 100) == [(0, 2)]


def test_what_was_acknowledged_is_not_returned_again() -> None:
    sent = Sent(after=0)
    sent.note(messages(1, 20))

    sent.forget(15)
    assert sent.first_up_to(100) == (15, 20)
    sent.forget(20)
    assert sent.first_up_to(100) is None
    sent.note(messages(21))
    assert sent.first_up_to(100) == (20, 21)


def test_what_is_sent_while_a_run_is_acknowledged_is_left_of_it() -> None:
    sent = Sent(after=0)
    sent.note(messages(1, 2))
    _, until = sent.first_up_to(100) or (0, 0)
    sent.note(messages(3))
    sent.note_gap(Gap(4, 5, "overflow"))
    sent.note(messages(6))

    sent.forget(until)

    assert runs(sent, 100) == [(2, 3), (5, 6)]
