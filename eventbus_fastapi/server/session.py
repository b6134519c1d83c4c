"""A session: does what the client of one connection asks, one command after the other, and has each answered.

    command ─▶ publish ───▶ node ──┐
            ─▶ ack, nack ─▶ member ├─▶ replies
            ─▶ subscribe ─▶ feeds ─┘

A publish or an ack is handed over, and its answer follows when it is stored: the next command does not wait for it. How
commands arrive, and when the connection ends, is not its business; it may ask for the end (`Life`).
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import assert_never

from eventbus_fastapi.errors import BadFrame, EventBusError, PublishTooFast
from eventbus_fastapi.events import Receipt
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.protocol import cloudevents, frames
from eventbus_fastapi.protocol.commands import (
    Acknowledge,
    AcknowledgeUpTo,
    Authenticate,
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
from eventbus_fastapi.server.group_feed import Answer, GroupFeed
from eventbus_fastapi.server.life import Life
from eventbus_fastapi.server.outlet import Ending
from eventbus_fastapi.server.publish_rate import Pace
from eventbus_fastapi.server.replies import Replies, internal
from eventbus_fastapi.server.subscriptions import Subscriptions
from eventbus_fastapi.server.warden import Warden
from eventbus_fastapi.store import Ack

logger = logging.getLogger(__name__)

MAX_BAD_FRAMES = 100
"""The connection is closed at so many bad frames without a usable one between."""


class Session:
    """See the module's docstring. `counted_as` is the name by which the client's publishes are counted."""

    __slots__ = (
        "_acks",
        "_bad_frames",
        "_counted_as",
        "_life",
        "_node",
        "_replies",
        "_subprotocol",
        "_subscriptions",
        "_warden",
        "pace",
    )

    def __init__(
        self,
        life: Life,
        replies: Replies,
        subscriptions: Subscriptions,
        warden: Warden,
        node: Node,
        pace: Pace,
        *,
        counted_as: str,
        subprotocol: str | None,
    ) -> None:
        self.pace = pace
        self._life = life
        self._replies = replies
        self._subscriptions = subscriptions
        self._warden = warden
        self._node = node
        self._counted_as = counted_as
        self._subprotocol = subprotocol
        # A dict in place of a set, which takes more memory while it is empty.
        self._acks: dict[asyncio.Task[int] | asyncio.Future[Answer], None] = {}
        self._bad_frames = 0

    async def do(self, command: Command | Refused, size: int) -> None:
        """Do what a command asks. `size`: about the bytes of its frame, which is held until it is answered."""
        try:
            if isinstance(command, Refused):
                self._refuse(command)
                return
            self._bad_frames = 0
            match command:
                case Publish():
                    self._publish(command, size)
                case Subscribe():
                    await self._subscriptions.subscribe(command)
                case Unsubscribe():
                    await self._subscriptions.unsubscribe(command)
                case Acknowledge() | AcknowledgeUpTo():
                    self._acknowledge(command, size)
                case Nack() | Reject() | Extend():
                    self._settle(self._subscriptions.member(command.sub), command, size)
                case Credit(sub=sub, credit=credit):
                    (self._subscriptions.members.get(sub) or self._subscriptions.feed(sub)).allow(credit)
                    self._replies.ok(command.id)
                case Authenticate():
                    await self._warden.renew(command.token.get_secret_value())
                    self.tell_identity(command.id)
                case Ping():
                    self._ping(command)
                case _:
                    assert_never(command)
        except EventBusError as exc:
            self._replies.refuse(exc, command.id, getattr(command, "sub", None))
        except Exception:
            logger.exception("failed to do a frame of connection %s", self._life.id)
            self._replies.refuse(internal(), command.id)

    async def close(self, timeout: float) -> None:
        """Answer nothing more. Acks that were taken are carried out, within so many seconds; so are publishes, by the
        node.
        """
        self._replies.close()
        if self._acks:
            await asyncio.wait(tuple(self._acks), timeout=timeout)
            for ack in tuple(self._acks):
                ack.cancel()

    def tell_identity(self, frame_id: int | None) -> None:
        """Answer who the client is, and for how long."""
        principal = self._life.principal
        left = principal.expires_in()
        self._replies.ok(frame_id, principal=principal.name, **({} if left is None else {"expires_in": left}))

    def _refuse(self, refused: Refused) -> None:
        self._replies.refuse(refused.error, refused.id, refused.sub)
        if not refused.error.code.startswith("frame."):
            return  # an event that breaks the rules, of a client that speaks the protocol
        self._bad_frames += 1
        if self._bad_frames >= MAX_BAD_FRAMES:
            error = BadFrame(f"{MAX_BAD_FRAMES} bad frames in a row; the last: {refused.error}")
            self._life.end(Ending(4400, error, reconnect=False, after=0))

    def _publish(self, command: Publish, size: int) -> None:
        for draft in command.drafts:
            self._life.principal.require_publish(draft.topic)
        self._keep_pace(command)
        render = None
        if command.id is not None and self._subprotocol != cloudevents.SUBPROTOCOL:
            answer = frames.batch_published if command.is_batch else _published
            render = partial(answer, command.id)
        if not command.is_live:
            self._replies.expect(self._node.submit(command.drafts), render, command.id, size)
            return
        receipts = [self._node.publish_live(draft) for draft in command.drafts]
        if render is not None:
            self._replies.say(render(receipts))

    def _keep_pace(self, command: Publish) -> None:
        try:
            self.pace.take(self._counted_as, len(command.drafts), command.wave)
        except PublishTooFast as exc:
            if self.pace.is_hopeless:
                self._life.end(Ending(4429, exc, reconnect=False, after=0))
            raise

    def _acknowledge(self, command: Acknowledge | AcknowledgeUpTo, size: int) -> None:
        """Settle what a member of a group has, or mark events processed."""
        member = self._subscriptions.find_member(command.sub)
        if member is not None:
            self._settle(member, command, size)
            return
        principal = self._life.principal
        may_read = None if principal.may_read_all else self._may_read
        match command:
            case Acknowledge(events=events):
                acking = self._node.acknowledge([Ack(*event, may_read) for event in events])
            case AcknowledgeUpTo(sub=sub, up_to=up_to):
                acking = self._subscriptions.feed(sub).acknowledge_up_to(up_to)
        task = asyncio.create_task(acking, name=f"websocket-{self._life.id}-ack")
        self._carry_out(task)
        render = None if command.id is None else partial(_acked, command.id)
        self._replies.expect(task, render, command.id, size)

    def _may_read(self, topic: str) -> bool:
        return self._life.principal.may_read(topic)

    def _settle(
        self, member: GroupFeed, command: Acknowledge | AcknowledgeUpTo | Nack | Reject | Extend, size: int
    ) -> None:
        result = member.settle(command, is_awaited=command.id is not None)
        if isinstance(result, dict):
            self._replies.ok(command.id, **result)
            return
        self._carry_out(result)
        self._replies.expect(result, partial(_settled, command.id), command.id, size)

    def _carry_out(self, ack: asyncio.Task[int] | asyncio.Future[Answer]) -> None:
        """Keep an ack until it is stored, also beyond the end of the connection."""
        self._acks[ack] = None
        ack.add_done_callback(self._acks.pop)

    def _ping(self, command: Ping) -> None:
        if self._subprotocol == frames.SUBPROTOCOL:
            self._replies.say(frames.server_frame(frames.Pong(command.id)))
        else:
            self._replies.ok(command.id)


def _published(frame_id: int, receipts: list[Receipt]) -> str:
    return frames.published(frame_id, receipts[0])


def _acked(frame_id: int, acked: int) -> str:
    return frames.server_frame(frames.Ok(frame_id, {"acked": acked}))


def _settled(frame_id: int | None, answer: Answer) -> str:
    assert frame_id is not None
    return frames.server_frame(frames.Ok(frame_id, answer))
