"""Acks of a group's events that wait together: one frame, one answer, and an end for each of them."""

from __future__ import annotations

import json
from typing import Any

from eventbus_fastapi.backoff import FullJitter
from eventbus_fastapi.errors import EventBusError, LeaseLost
from eventbus_fastapi.protocol.client import ClientSession
from eventbus_fastapi.protocol.commands import Subscribe
from eventbus_fastapi.protocol.membership import Held
from tests.client.scripted import error, event

WELCOME = {
    "type": "welcome",
    "protocol": 1,
    "server": "s",
    "connection": "c",
    "epoch": "00000000-0000-0000-0000-000000000001",
    "head": 0,
    "heartbeat": 15,
    "limits": {"max_frame": 2_000},
}


class Member:
    """A session that is a member of a group, connected, and what it was sent."""

    def __init__(self, attempts: list[int]) -> None:
        self.session = ClientSession(
            backoff=FullJitter(0.1, 1.0), max_retries=None, max_pending=10, max_pending_bytes=10_000
        )
        membership = self.session.join(Subscribe(("#",), group="g"))
        self.receive(WELCOME)
        [subscribe] = self.sent()
        confirmed = {"sub": 1, "ack_wait": 30, "patterns": ["#"]}
        self.receive({"type": "ok", "id": subscribe["id"], **confirmed})
        self.receive(*({**event(seq), "sub": 1, "attempt": attempt} for seq, attempt in enumerate(attempts, 1)))
        self.held: list[Held] = []
        while (held := self.session.take_held(membership)) is not None:
            self.held.append(held)

    def receive(self, *frames: dict[str, Any]) -> None:
        self.session.receive(json.dumps(frames), 0.0)

    def ack(self) -> list[int]:
        """Ack all that it holds; return the ids of the requests."""
        return [self.session.ack(held) for held in self.held]

    def sent(self) -> list[dict[str, Any]]:
        text = self.session.next_frame(0.0)
        frames = [] if text is None else json.loads(text)
        return frames if isinstance(frames, list) else [frames]

    def settled(self) -> dict[int, EventBusError | None]:
        settled = {request_id: error for request_id, _, error in self.session.settled}
        self.session.settled.clear()
        return settled


def test_acks_that_wait_together_are_one_frame_and_each_is_answered() -> None:
    member = Member([1, 1, 1])
    requests = member.ack()
    [frame] = member.sent()
    assert frame == {"type": "ack", "sub": 1, "seqs": [1, 2, 3], "attempt": 1, "id": requests[0]}
    member.receive({"type": "ok", "id": frame["id"], "acked": 3})
    assert member.settled() == dict.fromkeys(requests)


def test_acks_of_other_attempts_have_frames_of_their_own() -> None:
    member = Member([1, 2, 2])
    member.ack()
    assert [(frame.get("seq"), frame.get("seqs"), frame["attempt"]) for frame in member.sent()] == [
        (1, None, 1),
        (None, [2, 3], 2),
    ]


def test_only_what_is_another_members_has_failed() -> None:
    member = Member([1, 1, 1])
    first, second, third = member.ack()
    [frame] = member.sent()
    member.receive({"type": "error", "id": frame["id"], "error": {**error("lease.lost"), "seqs": [2]}})
    settled = member.settled()
    assert (settled[first], settled[third]) == (None, None)
    refused = settled[second]
    assert refused is not None
    assert refused.code == "lease.lost"


def test_all_wait_to_be_sent_again_where_the_server_could_not_do_it() -> None:
    member = Member([1, 1])
    member.ack()
    [frame] = member.sent()
    member.receive({"type": "error", "id": frame["id"], "error": error("store.unavailable", retry=True)})
    assert member.settled() == {}
    due = member.session.due()
    assert due is not None
    text = member.session.next_frame(due)
    assert text is not None
    assert json.loads(text)["seqs"] == [1, 2]


def test_one_that_is_not_waited_for_any_more_changes_nothing_for_the_others() -> None:
    member = Member([1, 1])
    first, second = member.ack()
    [frame] = member.sent()
    member.session.forget(first)  # the frame has its id
    member.receive({"type": "ok", "id": frame["id"], "acked": 2})
    assert member.settled() == {second: None}


def test_one_that_is_taken_back_before_it_is_sent_is_not_sent() -> None:
    member = Member([1, 1, 1])
    first, *_ = member.ack()
    member.session.forget(first)
    [frame] = member.sent()
    assert frame["seqs"] == [2, 3]


def test_a_lost_connection_loses_each_of_them() -> None:
    member = Member([1, 1])
    requests = member.ack()
    member.sent()
    member.session.disconnected()
    settled = member.settled()
    assert list(settled) == requests
    assert all(isinstance(refused, LeaseLost) for refused in settled.values())


def test_a_frame_has_no_more_acks_than_the_server_accepts_bytes() -> None:
    member = Member([1] * 500)
    member.ack()
    seqs: list[int] = []
    while frames := member.sent():
        assert len(json.dumps(frames)) <= 2_000 * 1.2  # dumps writes spaces
        for frame in frames:
            seqs += frame["seqs"]
    assert seqs == list(range(1, 501))
