"""The fan-out over a real NATS: nodes hear each other, and NATS may go, freeze and come back empty."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import nats
import pytest
from nats.js.errors import NotFoundError

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.errors import SettingsError
from eventbus_fastapi.pipeline.fanout import StreamUnavailable
from eventbus_fastapi.relay.fanout import open_fanout
from eventbus_fastapi.relay.fanout_stream import MOST_UNACKED, JetStream
from eventbus_fastapi.settings import Settings
from tests.brokers import BrokerServer, own_broker
from tests.waiting import eventually

OpenBus = Callable[..., Awaitable[EventBus]]


class Reader:
    """Remembers what a stream told it."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.pushed: list[bool] = []
        self.lost: list[str] = []

    def hear(self, encoded: bytes) -> None:
        self.heard.append(encoded)

    def note_pushed(self, is_new: bool) -> None:
        self.pushed.append(is_new)

    def note_lost(self, reason: str) -> None:
        self.lost.append(reason)


Open = Callable[[UUID], Awaitable[tuple[JetStream, Reader]]]


@pytest.fixture
def server() -> Iterator[BrokerServer]:
    with own_broker("nats") as server:
        yield server


@pytest.fixture
async def open_stream(server: BrokerServer) -> AsyncIterator[Open]:
    streams: list[JetStream] = []

    async def open_stream(epoch: UUID) -> tuple[JetStream, Reader]:
        stream, reader = JetStream([server.url]), Reader()
        streams.append(stream)
        await stream.open(epoch, reader)
        return stream, reader

    yield open_stream
    for stream in streams:
        await stream.close()


async def test_what_one_pushes_all_hear_in_any_size(open_stream: Open) -> None:
    epoch = uuid4()
    (one, reader), (_, other) = await open_stream(epoch), await open_stream(epoch)
    pushed = [b"first", bytes(range(256)) * 1_000, b"last"]
    for encoded in pushed:
        await one.push(encoded)
    await eventually(lambda: reader.heard == other.heard == pushed)
    await eventually(lambda: reader.pushed == [True] * 3)
    assert 1_048_000 < one.most_bytes < 1_048_576


async def test_it_is_idle_while_each_push_is_stored(open_stream: Open) -> None:
    stream, _ = await open_stream(uuid4())
    before = stream.is_idle
    await stream.push(b"on its way")
    assert (before, stream.is_idle) == (True, False)
    await eventually(lambda: stream.is_idle)


async def test_the_largest_push_has_room_for_its_id(open_stream: Open) -> None:
    """NATS counts the header, too, and ended the connection of who pushed so much."""
    stream, reader = await open_stream(uuid4())
    push_id = f"{2**63 - 2}-{2**63 - 1}"
    await stream.push(bytes(stream.most_bytes), push_id)
    await eventually(lambda: bool(reader.pushed or reader.lost))
    assert (reader.pushed, reader.lost) == ([True], [])


async def test_the_past_is_not_heard(open_stream: Open) -> None:
    epoch = uuid4()
    one, reader = await open_stream(epoch)
    await one.push(b"past")
    await eventually(lambda: reader.pushed == [True])
    _, late = await open_stream(epoch)
    await one.push(b"now")
    await eventually(lambda: late.heard == [b"now"])


async def test_another_log_has_another_stream(open_stream: Open) -> None:
    (one, reader), (_, other) = await open_stream(uuid4()), await open_stream(uuid4())
    await one.push(b"mine")
    await eventually(lambda: reader.heard == [b"mine"])
    assert other.heard == []


async def test_the_same_push_of_two_is_stored_once(open_stream: Open) -> None:
    epoch = uuid4()
    (one, reader), (two, other) = await open_stream(epoch), await open_stream(epoch)
    await one.push(b"mended", "1-9")
    await eventually(lambda: other.heard == [b"mended"])
    await two.push(b"mended", "1-9")
    await eventually(lambda: other.pushed == [False])
    assert reader.heard == [b"mended"]


async def test_many_pushes_wait_for_their_acks(open_stream: Open) -> None:
    stream, reader = await open_stream(uuid4())
    for number in range(20 * MOST_UNACKED):
        await stream.push(b"%d" % number)
        assert number + 1 - len(reader.pushed) <= MOST_UNACKED
    await eventually(lambda: reader.heard == [b"%d" % number for number in range(20 * MOST_UNACKED)])


async def test_a_stream_that_somebody_made_with_other_limits_is_used_as_it_is(
    server: BrokerServer, open_stream: Open
) -> None:
    epoch = uuid4()
    connection = await nats.connect(server.url)
    subjects = [f"eventbus.fanout.{epoch.hex}"]
    await connection.jetstream().add_stream(name=f"EVENTBUS_{epoch.hex}", subjects=subjects, max_msgs=5)
    await connection.close()
    stream, reader = await open_stream(epoch)
    await stream.push(b"hello")
    await eventually(lambda: reader.heard == [b"hello"])


async def test_a_connection_that_is_cut_is_lost_and_can_be_opened_again(
    server: BrokerServer, open_stream: Open
) -> None:
    epoch = uuid4()
    stream, reader = await open_stream(epoch)
    server.kill()
    await eventually(lambda: len(reader.lost) == 1)
    with pytest.raises(StreamUnavailable):
        await stream.push(b"to nobody")
    await stream.close()
    with pytest.raises(StreamUnavailable):
        await stream.open(epoch, reader)
    server.start()
    await stream.open(epoch, reader)
    await stream.push(b"hello")
    await eventually(lambda: reader.heard == [b"hello"])
    assert len(reader.lost) == 1


async def test_a_server_that_freezes_is_lost(server: BrokerServer, open_stream: Open) -> None:
    stream, reader = await open_stream(uuid4())
    with server.frozen():
        await eventually(lambda: len(reader.lost) == 1)
    assert "nothing has come" in reader.lost[0]
    await stream.close()


async def test_a_stream_that_is_removed_is_lost(server: BrokerServer, open_stream: Open) -> None:
    epoch = uuid4()
    stream, reader = await open_stream(epoch)
    connection = await nats.connect(server.url)
    await connection.jetstream().delete_stream(f"EVENTBUS_{epoch.hex}")
    await connection.close()
    await stream.push(b"to nobody")
    await eventually(lambda: len(reader.lost) == 1)
    await stream.close()
    await stream.open(epoch, reader)


async def test_consumers_go_with_their_nodes(server: BrokerServer, open_stream: Open) -> None:
    epoch = uuid4()
    stream, _ = await open_stream(epoch)
    await stream.close()
    connection = await nats.connect(server.url)
    jetstream = connection.jetstream()

    async def is_alone() -> bool:
        try:
            return await jetstream.consumers_info(f"EVENTBUS_{epoch.hex}") == []
        except NotFoundError:
            return False

    await eventually(is_alone, 20)
    await connection.close()


# --- settings ---


@pytest.mark.parametrize("url", ["127.0.0.1:4222", "http://127.0.0.1:4222", "nats://a:4222,redis://user:secret@b"])
def test_a_url_that_is_none_of_nats_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"EVENTBUS_FANOUT\): expected a URL of NATS") as caught:
        open_fanout(Settings(fanout=url))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["nats://user:se/cret@one:4222", "nats://user:se[cret@one", "nats://user:secret@one:x"])
def test_a_url_without_an_address_is_refused_and_its_password_not_shown(url: str) -> None:
    """The client of NATS failed on it in every attempt, with a piece of the password in the log."""
    with pytest.raises(SettingsError, match="whose host and port cannot be read") as caught:
        open_fanout(Settings(fanout=url))
    assert "se" not in str(caught.value).partition(", got ")[2].partition("; ")[0].replace("whose", "")
    assert caught.value.__cause__ is caught.value.__context__ is None


async def test_urls_that_the_client_of_nats_refuses_are_a_stream_that_is_away() -> None:
    stream = JetStream(["nats://127.0.0.1:1", "ws://127.0.0.1:1"])
    with pytest.raises(StreamUnavailable, match="mixing"):
        await stream.open(uuid4(), Reader())


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nats", None)
    monkeypatch.delitem(sys.modules, "eventbus_fastapi.relay.fanout_stream", raising=False)
    with pytest.raises(SettingsError, match=r"pip install 'eventbus-fastapi\[fanout\]'"):
        EventBus("sqlite+aiosqlite:///:memory:", fanout="nats://127.0.0.1:4222")


def test_what_is_logged_of_the_servers_has_no_password() -> None:
    assert JetStream(["nats://user:secret@one:4222", "two:4222"]).name == "one:4222, two:4222"


# --- nodes ---


def is_alive(bus: EventBus) -> bool:
    return bus.node.fanout is not None and bus.node.fanout.is_alive


async def test_nodes_hear_each_other_and_nats_may_be_killed_and_come_back_empty(
    server: BrokerServer, open_bus: OpenBus
) -> None:
    settings: dict[str, Any] = {"fanout": server.url, "poll_interval": 0.05}
    publisher, other = await open_bus(**settings), await open_bus(**settings)
    await eventually(lambda: is_alive(publisher) and is_alive(other))
    numbers = iter(range(1_000_000))
    stopped = asyncio.Event()

    async def publish() -> int:
        while not stopped.is_set():
            await publisher.publish("number", next(numbers))
        return next(numbers)

    async with other.subscribe("#") as subscription:
        publishing = asyncio.create_task(publish())
        found = [(await anext(subscription)).payload for _ in range(50)]
        server.kill()
        await eventually(lambda: not is_alive(publisher) and not is_alive(other))
        found += [(await anext(subscription)).payload for _ in range(50)]
        server.start()
        await eventually(lambda: is_alive(publisher) and is_alive(other), 20)
        before = other.node.meters.fanout_given
        await eventually(lambda: other.node.meters.fanout_given > before)
        stopped.set()
        count = await publishing
        async with asyncio.timeout(20):
            while len(found) < count:
                found.append((await anext(subscription)).payload)
    assert found == list(range(count))
