"""Refusals: what an ingest cannot make events of, as dead letters of a group of its own.

The group has no patterns, so it reads nothing of the log and holds nothing back; its dead letters are looked after like
those of any other, and one that is tried again goes the way of a message once more, under the rules of today.

    message ──refused──▶ dead letter ──retry──▶ waits ──▶ event
                              ▲                   └──refused──┐
                              └───────────────────────────────┘

A dead letter holds the body as it came, and what else its message said in its metadata. Its seq is a number of its own,
no place in the log.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from eventbus_fastapi import codec
from eventbus_fastapi.errors import EventBusError, GroupConflict, InvalidInput, InvalidTopic, StoreUnavailable, quote
from eventbus_fastapi.events import Draft, Message
from eventbus_fastapi.pipeline.error_record import ErrorRecord
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.relay.foreign import INGEST, Foreign, Rules, drafts_of, message_id_of, plain_headers
from eventbus_fastapi.store.dead_letters import Refused
from eventbus_fastapi.store.group import Death, Group, Held, Settlement
from eventbus_fastapi.topics import check_topic

NO_TOPIC = "ingest.refused"
"""The topic of a dead letter whose message has none that can be one."""
MOST_BYTES = 15_000_000
"""Bytes of a body that are kept: MySQL takes no more than 16 MiB at once."""
MOST_METADATA = 60_000
"""Bytes of what its message says besides; without its headers, where that is more."""
MOST_SAID = 1_000
"""Characters of each of its parts that are no headers."""
RETRIES = 100
"""Dead letters that are tried again in one go."""
RETRY_LEASE = 60.0


class Refusal(NamedTuple):
    """A message that cannot be an event, and why."""

    foreign: Foreign
    reason: EventBusError


class Refusals:
    """See the module's docstring."""

    def __init__(self, node: Node, name: str, rules: Rules) -> None:
        self._node = node
        self._name = name
        self._rules = rules

    async def open(self) -> Group:
        """Return the group; make it if there is none.

        Raises:
            GroupConflict: there is one of this name that reads the log.
        """
        groups = self._node.store.groups
        group = await groups.ensure(self._name, (), after=(await self._node.store.head()).last_seq)
        if group.patterns:
            raise GroupConflict(f"the group {quote(self._name)} reads {' '.join(group.patterns)}; give another name")
        return group

    async def bury(self, refusals: Sequence[Refusal]) -> None:
        """Keep messages as dead letters; one that was kept already stays as it is."""
        if refusals:
            letters = [self._letter(refusal) for refusal in refusals]
            await self._node.store.dead_letters.bury(await self.open(), letters)

    def _letter(self, refusal: Refusal) -> Refused:
        foreign = refusal.foreign
        try:
            message_id = message_id_of(foreign, self._rules)
        except InvalidInput:
            message_id = codec.new_message_id()
        try:
            topic = check_topic(foreign.subject)
        except InvalidTopic:
            topic = NO_TOPIC
        body = foreign.body[:MOST_BYTES]
        errors = [_record(refusal.reason, self._node.consumers.owner, 1)]
        return Refused(message_id, topic, body, _written(foreign, len(body)), errors)

    # --- again ---

    async def try_again(self, publish: Callable[[Sequence[Draft]], Awaitable[None]]) -> int:
        """Have what waits for another attempt published, or refused once more; return how many there were.

        Raises:
            StoreUnavailable: those that are held are tried again when their lease has ended.
        """
        groups = self._node.store.groups
        group = await self.open()
        look = next(iter(await groups.look([group.id])), None)
        if look is None or look.retry_due is None or look.retry_due > look.now:
            return 0
        owner = self._node.consumers.owner
        held = await groups.hold_retries(group, limit=RETRIES, owner=owner, lease=RETRY_LEASE)
        for each in held:
            await groups.settle([await self._once_more(group, each, owner, publish)])
        return len(held)

    async def _once_more(
        self, group: Group, held: Held, owner: str, publish: Callable[[Sequence[Draft]], Awaitable[None]]
    ) -> Settlement:
        seq = held.message.seq
        try:
            foreign = _read(held.message, self._rules)
            await publish(drafts_of(foreign, self._rules, self._node.settings))
        except StoreUnavailable:
            raise
        except EventBusError as exc:
            errors = [*held.errors, _record(exc, owner, held.attempt)]
            return Settlement(group.id, held.token, dead=[Death(seq, held.attempt, errors)])
        return Settlement(group.id, held.token, done=[seq])


def _record(reason: EventBusError, node: str, attempt: int) -> dict[str, Any]:
    """Return the record of an attempt. It has no traceback: the fault is in the message."""
    kind, now = type(reason), time.time_ns() // 1_000
    record = ErrorRecord(f"{kind.__module__}.{kind.__qualname__}", str(reason), time=now, node=node, attempt=attempt)
    loaded: dict[str, Any] = json.loads(record.to_json())
    return loaded


def _written(foreign: Foreign, kept: int) -> str:
    """Return what a message says beside its body, as the metadata of its dead letter."""
    said: dict[str, Any] = {
        "subject": foreign.subject,
        "content_type": foreign.content_type,
        "encoding": foreign.encoding,
        "key": foreign.key,
        "id": foreign.given_id,
        "place": foreign.place,
    }
    if kept < len(foreign.body):
        said["cut"] = len(foreign.body)
    texts = {name: value[:MOST_SAID] if isinstance(value, str) else value for name, value in said.items()}
    metadata: dict[str, Any] = {INGEST: plain_headers({name: text for name, text in texts.items() if text is not None})}
    text = json.dumps({**metadata, "headers": plain_headers(foreign.headers)})
    return text if len(text) <= MOST_METADATA else json.dumps(metadata)


def _read(message: Message, rules: Rules) -> Foreign:
    """Return the message that a dead letter was.

    Raises:
        InvalidPayload: its metadata is not what was written.
    """
    metadata = codec.load_object(message.metadata_json or "{}")
    said = metadata.get(INGEST, {})
    given = said.get("id")
    if given is None and said.get("place") is None and rules.identity != "given":
        given = str(message.message_id)  # the rules of today allow it one; the same each time
    return Foreign(
        said.get("subject", ""),
        message.body,
        metadata.get("headers", {}),
        content_type=said.get("content_type"),
        encoding=said.get("encoding"),
        key=said.get("key"),
        given_id=given,
        place=said.get("place"),
    )
