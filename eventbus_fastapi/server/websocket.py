"""`/ws`: serves one WebSocket in either dialect of docs/protocol.md.

    socket ─▶ reader ─▶ command ─▶ node ─▶ replies ─┐
                           └─▶ feed per subscription ├─▶ outlet ─▶ socket
                                       heart (v1) ───┘

The reader does commands one after the other; a publish is handed over and the next frame read without waiting for the
commit. Whatever ends the connection, `run` returns only when every task of it has ended. No connection to the database
is held here, and nothing that a client sent is logged.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import assert_never

from starlette.websockets import WebSocket

from eventbus_fastapi.errors import (
    BadFrame,
    BinaryFrame,
    EventBusError,
    GroupNotFound,
    NotSupported,
    SlowConsumer,
    SubscriptionClosed,
    SubscriptionExists,
    TooManySubscriptions,
    UnknownSubprotocol,
    UnknownSubscription,
    quote,
)
from eventbus_fastapi.events import Receipt
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.protocol import frames
from eventbus_fastapi.protocol.commands import (
    DEFAULT_MAX_ATTEMPTS,
    Acknowledge,
    AcknowledgeUpTo,
    Command,
    Credit,
    Extend,
    Nack,
    Ping,
    Publish,
    Refused,
    Reject,
    Subscribe,
    Unsubscribe,
)
from eventbus_fastapi.protocol.events import Sub
from eventbus_fastapi.protocol.parser import parse_client_frame
from eventbus_fastapi.server import tasks
from eventbus_fastapi.server.auto_ack import AutoAck
from eventbus_fastapi.server.feed import Feed
from eventbus_fastapi.server.group_feed import Answer, GroupFeed
from eventbus_fastapi.server.heart import Heart
from eventbus_fastapi.server.outlet import ConnectionEnded, Ending, Outlet
from eventbus_fastapi.server.problems import problem
from eventbus_fastapi.server.replies import Replies, internal
from eventbus_fastapi.store import Ack, Head
from eventbus_fastapi.store.group_name import check_group_name
from eventbus_fastapi.version import VERSION

logger = logging.getLogger(__name__)

Work = Callable[[], Awaitable[None]]

MAX_BAD_FRAMES = 100
"""The connection is closed at so many bad frames without a usable one between."""
READ_AT_ONCE = 100
"""Frames that are read before others get the loop."""


async def serve_websocket(websocket: WebSocket, node: Node) -> None:
    """Serve a WebSocket that has not been accepted yet, until it ends."""
    offered = websocket.scope.get("subprotocols", [])
    is_plain = not offered
    try:
        if offered and frames.SUBPROTOCOL not in offered:
            names = ", ".join(quote(name) for name in offered[:5])
            raise UnknownSubprotocol(f"unknown subprotocol {names}; expected none or '{frames.SUBPROTOCOL}'")
        head = await node.head()
    except EventBusError as exc:
        await _refuse(websocket, exc)
        return
    await websocket.accept(None if is_plain else frames.SUBPROTOCOL)
    await Connection(websocket, node, is_plain=is_plain).run(head)


async def _refuse(websocket: WebSocket, error: EventBusError) -> None:
    """Answer the handshake with a problem, or with a bare refusal where the ASGI server cannot do that."""
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        await websocket.send_denial_response(problem(error))
    else:
        await websocket.close()


class Connection:
    """One accepted WebSocket."""

    def __init__(self, websocket: WebSocket, node: Node, *, is_plain: bool) -> None:
        self.id = secrets.token_hex(8)
        self._websocket = websocket
        self._node = node
        self._settings = node.settings
        self._is_plain = is_plain
        self._ended: asyncio.Future[Ending | None] = asyncio.get_running_loop().create_future()
        self._outlet = Outlet(websocket, send_timeout=self._settings.send_timeout, on_end=self._end)
        self._replies = Replies(self._outlet, is_plain=is_plain)
        self._auto_ack = AutoAck(node) if self._settings.auto_ack else None
        self._feeds: dict[Sub, Feed] = {}
        self._groups: dict[Sub, GroupFeed] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._acks: set[asyncio.Task[int] | asyncio.Future[Answer]] = set()
        self._acknowledging = asyncio.Lock()
        self._bad_frames = 0
        self._heart = Heart(
            self._outlet, node.dispatcher, self._feeds, interval=self._settings.heartbeat, on_lost=self._end
        )

    async def run(self, head: Head) -> None:
        """Serve until the peer leaves or the server has to end it."""
        ending: Ending | None = None
        try:
            if not self._is_plain:
                await self._welcome(head)
                self._start(self._heart.run, "heart")
            self._start(self._replies.run, "replies")
            self._start(self._read, "reader")
            ending = await self._ended
        except ConnectionEnded:
            ending = self._ended.result()
        finally:
            if ending is None:
                self._outlet.let_go(self._settings.send_timeout)
            await self._stop()
        if ending is not None:
            logger.info("ended connection %s with %d (%s)", self.id, ending.code, ending.error.code)
            await self._outlet.close(ending, with_bye=not self._is_plain, timeout=self._settings.close_timeout)

    # --- life ---

    def _start(self, work: Work, name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._guard(work), name=f"websocket-{self.id}-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guard(self, work: Work) -> None:
        """Let a fault of ours end its connection, and nothing else."""
        try:
            await work()
        except ConnectionEnded:
            pass
        except Exception:
            logger.exception("connection %s failed", self.id)
            self._end(Ending(4500, internal()))

    def _end(self, ending: Ending | None) -> None:
        """End the connection: None: the peer is gone; the first reason counts."""
        if not self._ended.done():
            self._ended.set_result(ending)

    async def _stop(self) -> None:
        """End every task. Acks that were taken are carried out; so are publishes, by the node."""
        for feed in self._feeds.values():
            feed.subscription.on_close = None
            feed.subscription.close()
        try:
            await tasks.end(*self._tasks)
        finally:
            for member in self._groups.values():
                member.give_back(f"connection {self.id} ended before it was settled")
        for member in self._groups.values():
            await member.leave()
        self._replies.close()
        if self._acks:
            await asyncio.wait(self._acks, timeout=self._settings.statement_timeout)
            for ack in self._acks:
                ack.cancel()
        if self._auto_ack is not None:
            await self._auto_ack.close(self._settings.statement_timeout)

    async def _welcome(self, head: Head) -> None:
        settings = self._settings
        limits = {
            "max_frame": settings.max_frame,
            "max_payload": settings.max_payload,
            "max_batch": settings.max_batch,
            "max_subscriptions": settings.max_subscriptions,
            "buffer": settings.buffer,
        }
        welcome = frames.Welcome(VERSION, self.id, head.epoch, head.last_seq, settings.heartbeat, limits)
        await self._outlet.send(frames.server_frame(welcome))

    # --- reading ---

    async def _read(self) -> None:
        for number in itertools.count(1):
            await self._replies.room()
            self._heart.begin_listening()
            message = await self._websocket.receive()
            self._heart.end_listening()
            for member in self._groups.values():
                member.hear()
            if message["type"] == "websocket.disconnect":
                logger.debug("connection %s was left with %s", self.id, message.get("code"))
                self._end(None)
                return
            text = message.get("text")
            commands = self._parse(text)
            size = len(text or "") // max(len(commands), 1)
            for command in commands:
                await self._replies.room()
                await self._do(command, size)
            if number % READ_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _parse(self, text: str | None) -> list[Command | Refused]:
        if text is None:
            return [Refused(BinaryFrame())]
        try:
            return parse_client_frame(text, self._settings, arrays=not self._is_plain)
        except Exception:
            logger.exception("failed to read a frame of connection %s", self.id)
            return [Refused(internal())]

    async def _do(self, command: Command | Refused, size: int) -> None:
        try:
            if isinstance(command, Refused):
                self._refuse(command)
                return
            self._bad_frames = 0
            match command:
                case Publish():
                    self._publish(command, size)
                case Subscribe():
                    await self._subscribe(command)
                case Unsubscribe():
                    await self._unsubscribe(command)
                case Acknowledge() | AcknowledgeUpTo() if (member := self._member(command.sub)) is not None:
                    self._settle(member, command, size)
                case Acknowledge() | AcknowledgeUpTo():
                    self._acknowledge(command, size)
                case Nack() | Reject() | Extend():
                    self._settle(self._require_member(command.sub), command, size)
                case Credit(sub=sub, credit=credit):
                    (self._groups.get(sub) or self._feed(sub)).allow(credit)
                    self._replies.ok(command.id)
                case Ping():
                    self._ping(command)
                case _:
                    assert_never(command)
        except EventBusError as exc:
            self._replies.refuse(exc, command.id, getattr(command, "sub", None))
        except Exception:
            logger.exception("failed to do a frame of connection %s", self.id)
            self._replies.refuse(internal(), command.id)

    def _refuse(self, refused: Refused) -> None:
        self._replies.refuse(refused.error, refused.id, refused.sub)
        if not refused.error.code.startswith("frame."):
            return  # an event that breaks the rules, of a client that speaks the protocol
        self._bad_frames += 1
        if self._bad_frames >= MAX_BAD_FRAMES:
            error = BadFrame(f"{MAX_BAD_FRAMES} bad frames in a row; the last: {refused.error}")
            self._end(Ending(4400, error, reconnect=False, after=0))

    # --- commands ---

    def _publish(self, command: Publish, size: int) -> None:
        render = None
        if command.id is not None:
            answer = frames.batch_published if command.is_batch else _published
            render = partial(answer, command.id)
        if not command.is_live:
            self._replies.expect(self._node.submit(command.drafts), render, command.id, size)
            return
        receipts = [self._node.publish_live(draft) for draft in command.drafts]
        if render is not None:
            self._replies.say(render(receipts))

    async def _subscribe(self, command: Subscribe) -> None:
        sub = self._unused_sub() if command.sub is None else command.sub
        if sub in self._feeds or sub in self._groups:
            raise SubscriptionExists(f"subscription {quote(sub)} exists on this connection already")
        count = len(self._feeds) + len(self._groups)
        if count >= self._settings.max_subscriptions:
            raise TooManySubscriptions(
                f"the connection has {count} subscriptions, which is the limit (EVENTBUS_MAX_SUBSCRIPTIONS)"
            )
        if command.group is not None:
            await self._join(command, sub, command.group)
            return
        subscription = await self._node.subscribe(
            command.patterns,
            command.start,
            include_processed=command.include_processed,
            overflow=command.overflow,
            buffer=command.buffer,
            processed_before=command.processed_before,
            epoch=command.epoch,
        )
        subscription.on_close = self._note_closed
        feed = self._feeds[sub] = Feed(
            sub,
            subscription,
            self._outlet,
            self._node,
            acknowledging=self._acknowledging,
            is_plain=self._is_plain,
            credit=command.credit,
            auto_ack=self._auto_ack,
        )
        # Its events begin after the `ok`, which tells the client what they belong to.
        after, processed_before = subscription.after, subscription.processed_before
        self._replies.ok(command.id, partial(self._open, feed), sub=sub, after=after, processed_before=processed_before)

    def _unused_sub(self) -> int:
        return next(sub for sub in itertools.count(1) if sub not in self._feeds and sub not in self._groups)

    def _open(self, feed: Feed) -> None:
        if self._feeds.get(feed.sub) is feed:
            feed.task = self._start(partial(self._feed_until_closed, feed), f"feed-{feed.sub!a}")

    async def _feed_until_closed(self, feed: Feed) -> None:
        try:
            await feed.run()
        except SubscriptionClosed as exc:
            if self._feeds.get(feed.sub) is feed:
                del self._feeds[feed.sub]
                await self._tell_closed(feed, exc)

    async def _tell_closed(self, feed: Feed, reason: SubscriptionClosed) -> None:
        """A subscription ended by itself, as the bus stops."""
        if isinstance(reason, SlowConsumer):
            self._note_closed(reason)
        elif self._is_plain:
            self._end(Ending(4000, reason, after=0))  # this dialect has no word for it
        else:
            await self._outlet.send(frames.server_frame(frames.Closed(feed.sub, reason)))

    def _note_closed(self, reason: SubscriptionClosed) -> None:
        """An overflow policy ended a subscription: it ends the connection, also while a send is stalled."""
        if isinstance(reason, SlowConsumer):
            self._end(Ending(4100, reason))

    async def _unsubscribe(self, command: Unsubscribe) -> None:
        member = self._groups.pop(command.sub, None)
        if member is not None:
            await member.close()
        else:
            feed = self._feed(command.sub)
            del self._feeds[command.sub]
            await feed.close()
        self._replies.ok(command.id)

    # --- groups ---

    async def _join(self, command: Subscribe, sub: Sub, name: str) -> None:
        """Become a member of a group; make the group if there is none."""
        if self._is_plain:
            raise NotSupported(f"field 'group': groups need the subprotocol '{frames.SUBPROTOCOL}'")
        check_group_name(name)
        is_new = False
        try:
            await self._node.store.groups.get(name)
        except GroupNotFound:
            is_new = True
        consumers = self._node.consumers
        most = DEFAULT_MAX_ATTEMPTS if command.max_attempts is None else command.max_attempts
        consumer = await self._node.consume(name, command.patterns, start=command.start, max_attempts=most)
        member = self._groups[sub] = GroupFeed(
            sub, consumer, consumers, self._outlet, self._node, command, connection=self.id
        )
        self._replies.ok(
            command.id,
            partial(self._open_member, member),
            sub=sub,
            group=name,
            patterns=consumer.group.patterns,
            max_attempts=consumer.group.max_attempts,
            created=is_new,
            credit=member.credit,
            ack_wait=member.ack_wait,
        )

    def _open_member(self, member: GroupFeed) -> None:
        if self._groups.get(member.sub) is member:
            member.task = self._start(partial(self._serve_member, member), f"group-{member.sub!a}")

    async def _serve_member(self, member: GroupFeed) -> None:
        try:
            await member.run()
        except EventBusError as exc:  # the group was deleted, or the bus stops
            if self._groups.get(member.sub) is member:
                del self._groups[member.sub]
                await self._outlet.send(frames.server_frame(frames.Closed(member.sub, exc)))
            member.give_back("the subscription ended before it was settled")
            await member.leave()

    def _settle(
        self, member: GroupFeed, command: Acknowledge | AcknowledgeUpTo | Nack | Reject | Extend, size: int
    ) -> None:
        result = member.settle(command, is_awaited=command.id is not None)
        if isinstance(result, dict):
            self._replies.ok(command.id, **result)
            return
        self._acks.add(result)
        result.add_done_callback(self._acks.discard)
        self._replies.expect(result, partial(_settled, command.id), command.id, size)

    def _member(self, sub: Sub | None) -> GroupFeed | None:
        """Return the member of a group that an ack is for; None: the ack marks events processed.

        An ack that names no subscription is for the only one of its connection.
        """
        if sub is not None:
            member = self._groups.get(sub)
            if member is None:
                self._feed(sub)
            return member
        if len(self._groups) == 1 and not self._feeds:
            return next(iter(self._groups.values()))
        return None

    def _require_member(self, sub: Sub | None) -> GroupFeed:
        member = self._member(sub)
        if member is None:
            which = "the only subscription of the connection" if sub is None else f"subscription {quote(sub)}"
            raise NotSupported(f"{which} is not a group's, so it holds no event that could be given back")
        return member

    def _acknowledge(self, command: Acknowledge | AcknowledgeUpTo, size: int) -> None:
        match command:
            case Acknowledge(events=events):
                acking = self._node.acknowledge([Ack(*event) for event in events])
            case AcknowledgeUpTo(sub=sub, up_to=up_to):
                acking = self._feed(sub).acknowledge_up_to(up_to)
        task = asyncio.create_task(acking, name=f"websocket-{self.id}-ack")
        self._acks.add(task)
        task.add_done_callback(self._acks.discard)
        render = None if command.id is None else partial(_acked, command.id)
        self._replies.expect(task, render, command.id, size)

    def _ping(self, command: Ping) -> None:
        self._heart.expect_pings()
        if self._is_plain:
            self._replies.ok(command.id)
        else:
            self._replies.say(frames.server_frame(frames.Pong(command.id)))

    def _feed(self, sub: Sub) -> Feed:
        feed = self._feeds.get(sub)
        if feed is None:
            raise UnknownSubscription(f"no subscription {quote(sub)} on this connection")
        return feed


def _published(frame_id: int, receipts: list[Receipt]) -> str:
    return frames.published(frame_id, receipts[0])


def _acked(frame_id: int, acked: int) -> str:
    return frames.server_frame(frames.Ok(frame_id, {"acked": acked}))


def _settled(frame_id: int | None, answer: Answer) -> str:
    assert frame_id is not None
    return frames.server_frame(frames.Ok(frame_id, answer))
