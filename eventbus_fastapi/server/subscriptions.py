"""The subscriptions of one connection: feeds and members of groups, by the ids that the client has given them.

    subscribe ─▶ granted? ─▶ feed, or member of a group ─▶ `ok` ─▶ its events
                    ▲
    other grants ───┴──▶ ends what they do not cover

It opens and ends them and finds the one that a command means; what else the command asks for is done elsewhere.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from functools import partial

from eventbus_fastapi.errors import (
    EventBusError,
    Forbidden,
    GroupNotFound,
    NotSupported,
    SlowConsumer,
    SubscriptionClosed,
    SubscriptionExists,
    TooManySubscriptions,
    UnknownSubscription,
    quote,
)
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.protocol import cloudevents, frames
from eventbus_fastapi.protocol.commands import DEFAULT_MAX_ATTEMPTS, Subscribe, Unsubscribe
from eventbus_fastapi.protocol.events import Sub
from eventbus_fastapi.server.auto_ack import AutoAck
from eventbus_fastapi.server.dialects import V1, CloudEvents, Dialect, Plain
from eventbus_fastapi.server.feed import Feed
from eventbus_fastapi.server.group_feed import GroupFeed
from eventbus_fastapi.server.handshake import ending_of
from eventbus_fastapi.server.life import Life
from eventbus_fastapi.server.outlet import Ending, Outlet
from eventbus_fastapi.server.replies import Replies
from eventbus_fastapi.server.rounds import Rounds
from eventbus_fastapi.server.tasks import Work
from eventbus_fastapi.store.group_name import check_group_name


class Subscriptions:
    """See the module's docstring. `subprotocol` is the client's; None: the plain dialect."""

    __slots__ = (
        "_acknowledging",
        "_auto_ack",
        "_life",
        "_node",
        "_outlet",
        "_replies",
        "_rounds",
        "_subprotocol",
        "feeds",
        "members",
    )

    def __init__(
        self,
        life: Life,
        outlet: Outlet,
        replies: Replies,
        node: Node,
        rounds: Rounds,
        *,
        subprotocol: str | None,
    ) -> None:
        self._life = life
        self._outlet = outlet
        self._replies = replies
        self._node = node
        self._rounds = rounds
        self._subprotocol = subprotocol
        self._auto_ack = AutoAck(node) if node.settings.auto_ack else None
        self._acknowledging = asyncio.Lock()
        self.feeds: dict[Sub, Feed] = {}
        self.members: dict[Sub, GroupFeed] = {}

    # --- finding ---

    def feed(self, sub: Sub) -> Feed:
        """Return the feed of a subscription.

        Raises:
            UnknownSubscription: there is none of this id.
        """
        feed = self.feeds.get(sub)
        if feed is None:
            raise UnknownSubscription(f"no subscription {quote(sub)} on this connection")
        return feed

    def find_member(self, sub: Sub | None) -> GroupFeed | None:
        """Return the member of a group that an ack is for; None: the ack marks events processed.

        An ack that names no subscription is for the only one of its connection.

        Raises:
            UnknownSubscription: there is none of this id.
        """
        if sub is not None:
            member = self.members.get(sub)
            if member is None:
                self.feed(sub)
            return member
        if len(self.members) == 1 and not self.feeds:
            return next(iter(self.members.values()))
        return None

    def member(self, sub: Sub | None) -> GroupFeed:
        """Return the member of a group that a command is for.

        Raises:
            UnknownSubscription: there is none of this id.
            NotSupported: it is not a group's.
        """
        member = self.find_member(sub)
        if member is None:
            which = "the only subscription of the connection" if sub is None else f"subscription {quote(sub)}"
            raise NotSupported(f"{which} is not a group's, so it holds no event that could be given back")
        return member

    # --- opening ---

    async def subscribe(self, command: Subscribe) -> None:
        """Open a subscription, say so, and only then send its events.

        Raises:
            EventBusError: it cannot be opened, or the client may not have it.
        """
        sub = self._unused_sub() if command.sub is None else command.sub
        if sub in self.feeds or sub in self.members:
            raise SubscriptionExists(f"subscription {quote(sub)} exists on this connection already")
        count = len(self.feeds) + len(self.members)
        if count >= self._node.settings.max_subscriptions:
            raise TooManySubscriptions(
                f"the connection has {count} subscriptions, which is the limit (EVENTBUS_MAX_SUBSCRIPTIONS)"
            )
        if command.group is not None:
            await self._join(command, sub, command.group)
        else:
            await self._follow(command, sub)

    def _unused_sub(self) -> int:
        return next(sub for sub in itertools.count(1) if sub not in self.feeds and sub not in self.members)

    async def _follow(self, command: Subscribe, sub: Sub) -> None:
        """Open a subscription of the client's own."""
        self._life.principal.require_subscribe(*command.patterns)
        subscription = await self._node.subscribe(
            command.patterns,
            command.start,
            include_processed=command.include_processed,
            overflow=command.overflow,
            buffer=command.buffer,
            processed_before=command.processed_before,
            epoch=command.epoch,
        )
        try:
            self._life.principal.require_subscribe(*command.patterns)  # it may be another one by now
        except Forbidden:
            subscription.close()
            raise
        subscription.on_close = self._note_closed
        feed = self.feeds[sub] = Feed(
            sub,
            subscription,
            self._outlet,
            self._node,
            dialect=self._dialect(sub),
            acknowledging=self._acknowledging,
            start=self._start_feed,
            rounds=self._rounds,
            credit=command.credit,
            auto_ack=self._auto_ack,
        )
        # Its events begin after the `ok`, which tells the client what they belong to.
        after, processed_before = subscription.after, subscription.processed_before
        self._replies.ok(command.id, partial(self._open, feed), sub=sub, after=after, processed_before=processed_before)

    def _dialect(self, sub: Sub) -> Dialect:
        if self._subprotocol == cloudevents.SUBPROTOCOL:
            return CloudEvents(self._node.settings.cloudevents_source)
        return V1(sub) if self._subprotocol == frames.SUBPROTOCOL else Plain()

    def _open(self, feed: Feed) -> None:
        if self.feeds.get(feed.sub) is feed:
            feed.open()

    def _start_feed(self, feed: Feed, work: Work) -> asyncio.Task[None]:
        return self._life.start(partial(self._feed_until_closed, feed, work), f"feed-{feed.sub!a}")

    async def _feed_until_closed(self, feed: Feed, work: Work) -> None:
        try:
            await work()
        except SubscriptionClosed as exc:
            if self.feeds.get(feed.sub) is feed:
                del self.feeds[feed.sub]
                await self._tell_closed(feed, exc)

    async def _tell_closed(self, feed: Feed, reason: SubscriptionClosed) -> None:
        """A subscription ended by itself, as the bus stops."""
        if isinstance(reason, SlowConsumer):
            self._note_closed(reason)
        elif self._has_word_for_closed:
            await self._outlet.send(frames.server_frame(frames.Closed(feed.sub, reason)))
        else:
            self._life.end(Ending(4000, reason, after=0))

    def _note_closed(self, reason: SubscriptionClosed) -> None:
        """An overflow policy ended a subscription: it ends the connection, also while a send is stalled."""
        if isinstance(reason, SlowConsumer):
            self._life.end(Ending(4100, reason))

    @property
    def _has_word_for_closed(self) -> bool:
        """Whether the dialect can say that one subscription has ended. Where it cannot, the connection ends."""
        return self._subprotocol == frames.SUBPROTOCOL

    # --- groups ---

    async def _join(self, command: Subscribe, sub: Sub, name: str) -> None:
        """Become a member of a group; make the group if there is none."""
        if self._subprotocol != frames.SUBPROTOCOL:
            raise NotSupported(f"field 'group': groups need the subprotocol '{frames.SUBPROTOCOL}'")
        check_group_name(name)
        self._life.principal.require_join(name)  # else it could find out which groups there are
        is_new = False
        try:
            patterns: Sequence[str] = (await self._node.store.groups.get(name)).patterns
        except GroupNotFound:
            is_new, patterns = True, command.patterns
        self._require_member_of(name, patterns)
        consumers = self._node.consumers
        most = DEFAULT_MAX_ATTEMPTS if command.max_attempts is None else command.max_attempts
        consumer = await self._node.consume(name, command.patterns, start=command.start, max_attempts=most)
        try:
            self._require_member_of(name, consumer.group.patterns)  # both may have changed meanwhile
        except Forbidden:
            await consumers.close(consumer)
            raise
        member = self.members[sub] = GroupFeed(
            sub,
            consumer,
            consumers,
            self._outlet,
            self._node,
            command,
            connection=self._life.id,
            may_read=self._may_read,
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

    def _require_member_of(self, name: str, patterns: Sequence[str]) -> None:
        """Raise Forbidden unless the client may join a group of this name that reads what these patterns match."""
        self._life.principal.require_join(name)
        self._life.principal.require_subscribe(*patterns)

    def _may_read(self, topic: str) -> bool:
        return self._life.principal.may_read(topic)

    def _open_member(self, member: GroupFeed) -> None:
        if self.members.get(member.sub) is member:
            member.task = self._life.start(partial(self._serve_member, member), f"group-{member.sub!a}")

    async def _serve_member(self, member: GroupFeed) -> None:
        try:
            await member.run()
        except EventBusError as exc:  # the group was deleted, or the bus stops
            member.give_back("the subscription ended before it was settled")
            try:
                if self.members.get(member.sub) is member:
                    del self.members[member.sub]
                    await self._outlet.send(frames.server_frame(frames.Closed(member.sub, exc)))
            finally:
                await member.leave()

    def hear(self) -> None:
        """The client has said something."""
        for member in self.members.values():
            member.hear()

    # --- ending ---

    async def unsubscribe(self, command: Unsubscribe) -> None:
        """End a subscription, and say so.

        Raises:
            UnknownSubscription: there is none of this id.
        """
        member = self.members.get(command.sub)
        if member is not None:
            await self._close_member(member)
        else:
            feed = self.feed(command.sub)
            del self.feeds[command.sub]
            await feed.close()
        self._replies.ok(command.id)

    async def _close_member(self, member: GroupFeed) -> None:
        """End a member. It is one of ours until then: if the connection ends first, that gives back what it holds."""
        await member.close()
        if self.members.get(member.sub) is member:
            del self.members[member.sub]

    async def end_uncovered(self) -> None:
        """End the subscriptions that the client may no longer have, all at once: none waits for another's last send."""
        principal = self._life.principal
        feeds = [
            feed for feed in self.feeds.values() if not all(map(principal.may_subscribe, feed.subscription.patterns))
        ]
        members = [
            member
            for member in self.members.values()
            if not principal.may_join(member.consumer.group.name)
            or not all(map(principal.may_subscribe, member.consumer.group.patterns))
        ]
        for feed in feeds:
            del self.feeds[feed.sub]
            feed.stop()
        await asyncio.gather(*(feed.close() for feed in feeds), *map(self._close_member, members))
        for sub in [feed.sub for feed in feeds] + [member.sub for member in members]:
            await self._tell_forbidden(sub)

    async def _tell_forbidden(self, sub: Sub) -> None:
        error = Forbidden("what is granted does not cover the subscription any more")
        if self._has_word_for_closed:
            await self._outlet.send(frames.server_frame(frames.Closed(sub, error)))
        else:
            self._life.expel(ending_of(error))

    def stop(self) -> None:
        """Begin nothing more: the connection ends."""
        for feed in self.feeds.values():
            feed.stop()

    def give_back(self) -> None:
        """Let others have what the members of groups have not settled. Nothing is sent any more."""
        for member in self.members.values():
            member.give_back(f"connection {self._life.id} ended before it was settled")

    async def leave(self) -> None:
        """Leave the groups."""
        for member in self.members.values():
            await member.leave()

    async def close(self) -> None:
        """Mark what was sent as processed, where that is wanted."""
        if self._auto_ack is not None:
            await self._auto_ack.close(self._node.settings.statement_timeout)
