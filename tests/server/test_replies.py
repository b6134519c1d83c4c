"""How much may wait to be answered on one connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.types import Message

from eventbus_fastapi.server.outlet import Ending, Outlet, SocketLine
from eventbus_fastapi.server.replies import MAX_WAITING, Replies
from tests.waiting import eventually

MAX_QUEUED = 1_000_000


class Socket:
    """Takes what is sent, once its client reads."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reads = asyncio.Event()

    async def receive(self) -> Message:
        raise AssertionError("it is not read")

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        self.texts.append(message["text"])


@pytest.fixture
async def socket() -> Socket:
    return Socket()


@pytest.fixture
async def replies(socket: Socket) -> AsyncIterator[Replies]:
    def fail(ending: Ending | None) -> None:
        raise AssertionError(ending)

    outlet = Outlet(SocketLine(socket.receive, socket.send, has_bye=True), send_timeout=60, on_end=fail)
    running: list[asyncio.Task[None]] = []
    replies = Replies(
        outlet,
        is_plain=False,
        max_queued=MAX_QUEUED,
        start=lambda work: running.append(asyncio.create_task(work())),
    )
    yield replies
    replies.close()
    for each in running:
        each.cancel()


def has_room(replies: Replies) -> bool:
    return replies.has_room


def stored() -> asyncio.Future[Any]:
    """Return the result of something that is not done yet."""
    return asyncio.get_running_loop().create_future()


async def test_frames_that_wait_for_their_results_are_counted(replies: Replies) -> None:
    for number in range(MAX_WAITING):
        assert has_room(replies)
        replies.expect(stored(), None, number, 0)

    assert not has_room(replies)


async def test_frames_that_wait_for_their_results_are_counted_in_bytes(replies: Replies) -> None:
    replies.expect(stored(), None, 1, MAX_QUEUED - 1)
    assert has_room(replies)

    replies.expect(stored(), None, 2, 1)

    assert not has_room(replies)


async def test_answers_that_are_known_are_counted_in_bytes_too(replies: Replies) -> None:
    replies.expect(stored(), None, 1, 0)  # the others wait for it
    replies.say("x" * (MAX_QUEUED - 10))
    assert has_room(replies)

    replies.ok(2)

    assert not has_room(replies)


async def test_answers_that_a_client_does_not_read_leave_no_room(replies: Replies, socket: Socket) -> None:
    said = 0
    while has_room(replies):
        replies.say("x" * 100_000)
        said += 1
        await asyncio.sleep(0)
    assert said * 100_000 < 2 * MAX_QUEUED

    socket.reads.set()

    await asyncio.wait_for(replies.room(), 10)
    await eventually(lambda: sum(map(len, socket.texts)) >= said * 100_000)


async def test_there_is_room_again_once_the_first_results_are_there(replies: Replies, socket: Socket) -> None:
    socket.reads.set()
    results = [stored() for _ in range(MAX_WAITING)]
    for number, result in enumerate(results):
        replies.expect(result, None, number, 1)
    assert not has_room(replies)

    results[0].set_result(None)

    await asyncio.wait_for(replies.room(), 10)
