"""The session without a socket: whatever happens to connections, publishes and events neither get lost nor doubled."""

from __future__ import annotations

import json
from collections import deque
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus_fastapi.backoff import FullJitter
from eventbus_fastapi.events import Message, make_draft
from eventbus_fastapi.protocol.client import ClientSession, Verdict, verdict
from eventbus_fastapi.protocol.commands import Subscribe
from eventbus_fastapi.protocol.reading import Reading
from tests.client.scripted import EPOCH, error, event

WINDOW = 4


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (None, "back_off"),
        (1000, "back_off"),
        (1001, "return"),
        (1006, "back_off"),
        (1012, "return"),
        (4000, "return"),
        (4099, "return"),
        (4100, "back_off"),
        (4101, "back_off"),
        (4400, "stop"),
        (4429, "stop"),
        (4499, "stop"),
        (4500, "back_off"),
        (4599, "back_off"),
    ],
)
def test_a_close_code_says_whether_to_come_back(code: int | None, expected: Verdict) -> None:
    assert verdict(code) == expected


class Bus:
    """A server as simple as can be: a log, and one connection at a time."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.is_down = False
        self.outbox: deque[dict[str, Any]] = deque()
        self.cursor: int | None = None
        self.credit = 0

    def connect(self) -> None:
        self.cursor = None
        self.outbox.clear()
        limits = {"max_frame": 1_000}
        self.outbox.append(
            {
                "type": "welcome",
                "protocol": 1,
                "server": "s",
                "connection": "c",
                "epoch": str(EPOCH),
                "head": 0,
                "heartbeat": 15,
                "limits": limits,
            }
        )

    def receive(self, text: str) -> None:
        assert len(text) <= 1_000
        frames = json.loads(text)
        for frame in frames if isinstance(frames, list) else [frames]:
            match frame["type"]:
                case "publish":
                    self._publish(frame)
                case "subscribe":
                    self.cursor, self.credit = frame["from"], frame["credit"]
                    self.outbox.append({"type": "ok", "id": frame["id"], "sub": frame["sub"], "after": frame["from"]})
                case "credit":
                    self.credit += frame["credit"]

    def _publish(self, frame: dict[str, Any]) -> None:
        if self.is_down:
            unavailable = error("store.unavailable", retry=True, retry_after=1)
            self.outbox.append({"type": "error", "id": frame["id"], "error": unavailable})
            return
        message_id = frame["data"]["message_id"]
        is_duplicate = message_id in self.log
        if not is_duplicate:
            self.log.append(message_id)
        seq = self.log.index(message_id) + 1
        self.outbox.append(
            {"type": "ok", "id": frame["id"], "seq": seq, "message_id": message_id, "duplicate": is_duplicate}
        )

    def dispatch(self) -> None:
        while self.cursor is not None and self.credit and self.cursor < len(self.log):
            self.cursor += 1
            self.credit -= 1
            self.outbox.append(event(self.cursor))


class World:
    """A session, a bus, and a network between them that an example of hypothesis drives."""

    def __init__(self) -> None:
        self.bus = Bus()
        self.session = ClientSession(
            backoff=FullJitter(0.1, 1.0), max_retries=None, max_pending=1_000, max_pending_bytes=1_000_000
        )
        self.reading: Reading = self.session.subscribe(Subscribe(("#",), start=0), WINDOW)
        self.now = 0.0
        self.is_connected = False
        self.published: list[str] = []
        self.answers: dict[int, int] = {}
        self.requests: list[int] = []
        self.seen: list[int] = []

    def publish(self) -> None:
        draft = make_draft("t", len(self.published), max_payload=100)
        self.published.append(str(draft.message_id))
        self.requests.append(self.session.publish([draft], is_batch=False, is_live=False))

    def connect(self) -> None:
        if not self.is_connected:
            self.is_connected = True
            self.bus.connect()

    def cut(self) -> None:
        if self.is_connected:
            self.is_connected = False
            self.session.disconnected()

    def send(self) -> None:
        if self.is_connected and (text := self.session.next_frame(self.now)) is not None:
            self.bus.receive(text)

    def lose_sent(self) -> None:
        """The client has sent a frame, and the connection is cut before the server sees it."""
        if self.is_connected:
            self.session.next_frame(self.now)
            self.cut()

    def answer(self) -> None:
        """The network carries the server's next frame."""
        if self.is_connected:
            self.bus.dispatch()
            if self.bus.outbox:
                self.session.receive(json.dumps(self.bus.outbox.popleft()), self.now)
                self._settle()

    def take(self) -> None:
        item = self.session.take(self.reading)
        if isinstance(item, Message):
            self.seen.append(item.seq)

    def fail_database(self) -> None:
        self.bus.is_down = True

    def heal_database(self) -> None:
        self.bus.is_down = False

    def wait(self) -> None:
        self.now += 2.0

    def _settle(self) -> None:
        for request_id, result, refused in self.session.settled:
            assert refused is None
            assert result is not None
            assert request_id not in self.answers
            self.answers[request_id] = result[0].seq or 0
        self.session.settled.clear()

    def come_to_rest(self) -> None:
        self.heal_database()
        self.connect()
        for _ in range(20 * (len(self.published) + 5)):
            for step in (self.wait, self.send, self.answer, self.take):
                step()


STEPS = ["publish", "connect", "cut", "send", "lose_sent", "answer", "take", "fail_database", "heal_database", "wait"]


@given(st.lists(st.sampled_from([*STEPS, "publish", "connect", "send", "answer", "answer", "take"]), max_size=150))
def test_no_publish_and_no_event_is_lost_or_doubled(steps: list[str]) -> None:
    world = World()
    for step in steps:
        getattr(world, step)()
        assert len(world.reading._items) <= WINDOW
    world.come_to_rest()
    assert sorted(world.bus.log) == sorted(world.published)
    assert world.answers == {
        request: world.bus.log.index(message_id) + 1
        for request, message_id in zip(world.requests, world.published, strict=True)
    }
    assert world.seen == list(range(1, len(world.published) + 1))


@given(
    st.lists(st.sampled_from(["publish", "connect", "cut", "send", "lose_sent", "answer", "take"] * 2), max_size=150)
)
def test_lost_connections_do_not_change_the_order(steps: list[str]) -> None:
    world = World()
    for step in steps:
        getattr(world, step)()
    world.come_to_rest()
    assert world.bus.log == world.published


def test_an_ack_goes_before_publishes_that_wait() -> None:
    world = World()
    world.publish()
    world.session.acknowledge(1, UUID(int=1))
    world.connect()
    world.answer()
    frames = json.loads(world.session.next_frame(0.0) or "")
    assert [frame["type"] for frame in frames] == ["subscribe", "ack", "publish"]


def test_joined_frames_stay_within_what_the_server_accepts() -> None:
    world = World()
    for _ in range(50):
        world.publish()
    world.come_to_rest()  # the bus asserts it
    assert len(world.bus.log) == 50
