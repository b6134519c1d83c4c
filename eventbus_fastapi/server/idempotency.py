"""`Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): a publish that is repeated over HTTP happens once.

A key makes the message_ids of what it comes with, so that the log itself knows a repeated one again, on every node, for
as long as it keeps the events. Nothing else is stored, in particular no fingerprint: whether a repeated request is the
same is seen by looking at the events.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from fastapi import Request

from eventbus_fastapi import codec
from eventbus_fastapi.errors import IdempotencyKeyReused, InvalidIdempotencyKey, quote
from eventbus_fastapi.events import Draft, Message, Receipt
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.telemetry.tracing import TRACEPARENT, TRACESTATE

HEADER = "idempotency-key"
MAX_KEY = 255
"""Longest key, characters."""


class Key(NamedTuple):
    """A key, and the principal whose it is: others may have the same; None: nobody was asked for a name."""

    text: str
    whose: str | None

    def message_ids(self, count: int | None) -> list[UUID]:
        """Return the message_ids that it makes: of so many events in a list, or of one that is in none (None).

        A key that is a UUID is itself the message_id of one event.
        """
        names = HEADER, self.whose or "", self.text
        if count is not None:
            return [codec.derived_message_id(*names, str(place)) for place in range(count)]
        return [UUID(self.text) if _UUID.fullmatch(self.text) else codec.derived_message_id(*names)]


_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def parse_key(request: Request, whose: str | None) -> Key | None:
    """Return the key that a request has; None: it has none. As a string of structured fields, in quotes, or bare.

    Raises:
        InvalidIdempotencyKey: there are several, or it is not 1 to 255 visible ASCII characters.
    """
    given = request.headers.getlist(HEADER)
    if not given:
        return None
    if len(given) > 1:
        raise InvalidIdempotencyKey(f"expected one header Idempotency-Key, got {len(given)}")
    key = given[0].strip(" \t")
    if (quoted := _QUOTED.fullmatch(key)) is not None:
        key = _ESCAPED.sub(r"\1", quoted[1])
    elif key.startswith('"'):
        raise InvalidIdempotencyKey(f"Idempotency-Key: expected a string in quotes, got {quote(key)}")
    if not 1 <= len(key) <= MAX_KEY or not _KEY.fullmatch(key):
        raise InvalidIdempotencyKey(
            f"Idempotency-Key: expected 1 to {MAX_KEY} visible ASCII characters, got {len(key):,}: {quote(key)}"
        )
    return Key(key, whose)


_KEY = re.compile(r"[ -~]*")
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_ESCAPED = re.compile(r"\\(.)")


async def publish_once(node: Node, drafts: Sequence[Draft], key: Key, *, is_list: bool) -> list[Receipt]:
    """Publish events unless that was done with this key; then return the same receipts, as those of duplicates.

    Raises:
        IdempotencyKeyReused: the key was used for other events.
    """
    in_list, alone = key.message_ids(len(drafts) + 1), key.message_ids(None)
    ids = in_list[:-1] if is_list else alone
    named = [draft._replace(message_id=message_id) for draft, message_id in zip(drafts, ids, strict=True)]
    looked_for = [*in_list, *alone]  # of this request, of a longer list, of one event alone
    known, is_new_in_part = await node.find(looked_for), False
    if not known:
        receipts = await node.publish(named)
        if not any(receipt.duplicate for receipt in receipts):
            return receipts
        # A request with the same key came at the same time. The same one would have been stored as a whole.
        known, is_new_in_part = await node.find(looked_for), not all(receipt.duplicate for receipt in receipts)
    if known.keys() != set(ids) or is_new_in_part:
        raise IdempotencyKeyReused(
            f"Idempotency-Key {quote(key.text)} was used for other events, or some of its list have expired"
        )
    await _require_same(node, named, known)
    return [Receipt(message_id, known[message_id], duplicate=True) for message_id in ids]


async def _require_same(node: Node, drafts: Sequence[Draft], known: Mapping[UUID, int | None]) -> None:
    """Refuse drafts that differ from the events which have their message_ids. What has no seq is not looked at."""
    by_id = {draft.message_id: draft for draft in drafts}
    seqs = sorted(seq for message_id, seq in known.items() if message_id in by_id and seq is not None)
    after = seqs[0] - 1 if seqs else 0
    while seqs and after < seqs[-1]:
        scan = await node.store.read(after, len(seqs))
        for message in scan.messages:
            draft = by_id.get(message.message_id)
            if draft is not None and not _is_same(draft, message):
                raise IdempotencyKeyReused(f"the Idempotency-Key was used for another event: seq {message.seq}")
        after = scan.scanned_to
        if scan.is_last:
            return


def _is_same(draft: Draft, message: Message) -> bool:
    came = draft.topic, draft.key, draft.payload, draft.content_type, _own_metadata(draft.metadata)
    return came == (
        message.topic,
        message.key,
        message.body,
        message.content_type,
        _own_metadata(message.metadata_json),
    )


def _own_metadata(text: str | None) -> dict[str, Any]:
    """Return the metadata but for the trace, which is another one each time."""
    metadata = {} if text is None else codec.load_object(text)
    return {name: value for name, value in metadata.items() if name not in (TRACEPARENT, TRACESTATE)}
