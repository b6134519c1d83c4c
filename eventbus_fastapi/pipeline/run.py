"""A run: consecutive events of the log as one message for other nodes.

    prefix   version, epoch of the log, first seq, last seq, bytes of the table
    table    JSON, a column per field of the events; where all have the same value, the value alone
    ids      16 bytes of message_id for each event
    bodies   the payloads as they were published, one after the other

The first and the last seq say what the run is about, also where retention or a TTL has removed some of it: what lies
between and is not in it, is not in the log either. An event that is too large for a message is a run without a table:
read it from the log. Nothing is decoded before somebody asks for the messages.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import repeat
from operator import lt
from typing import Any
from uuid import UUID

from pydantic_core import from_json, to_json

from eventbus_fastapi.events import Message

VERSION = 1
RUN_BYTES = 262_144
"""Bytes with which a run ends."""
OVERHEAD = 100
"""Bytes that an event takes in a run beside its payload and its metadata, about."""
_PREFIX = struct.Struct(">B16sQQI")


class Run:
    """See the module's docstring. Made by `cut_runs` or `Run.decode`."""

    __slots__ = ("_bytes", "_messages", "first", "last", "size")

    def __init__(self, first: int, last: int, messages: Sequence[Message] | None, encoded: bytes = b"") -> None:
        self.first = first
        self.last = last
        self.size = len(encoded) if messages is None else sum(map(_size, messages))
        """Bytes, about."""
        self._messages = messages
        self._bytes = encoded

    @property
    def messages(self) -> Sequence[Message] | None:
        """The events; None: they are to be read from the log."""
        if self._messages is None and self._bytes:
            try:
                self._messages = _decode_messages(self._bytes)
            except (ValueError, TypeError):
                self._bytes = b""  # it is damaged
        return self._messages

    def after(self, position: int) -> Sequence[Message] | None:
        """Return its events after a seq; None: they are to be read from the log."""
        messages = self.messages
        if messages is None or position < self.first:
            return messages
        return [message for message in messages if message.seq > position]

    def encode(self, epoch: UUID, most: int) -> bytes:
        """Return what other nodes can decode, at most so many bytes."""
        encoded = _encode(self, epoch)
        if len(encoded) > most:
            encoded = _PREFIX.pack(VERSION, epoch.bytes, self.first, self.last, 0)
        return encoded

    @classmethod
    def decode(cls, encoded: bytes, epoch: UUID) -> Run | None:
        """Return the run; None: it is of another log, or of a version that this program does not know."""
        if len(encoded) < _PREFIX.size:
            return None
        version, of, first, last, table = _PREFIX.unpack_from(encoded)
        if version != VERSION or of != epoch.bytes or not 0 < first <= last:
            return None
        return cls(first, last, None, encoded if table else b"")

    def __repr__(self) -> str:
        return f"<Run {self.first}-{self.last}>"


def cut_runs(messages: Sequence[Message], first: int | None = None, last: int | None = None) -> Iterator[Run]:
    """Cut events into runs of about 256 KiB.

    Together they are about the seqs from `first` to `last`; None: about those of the events.
    """
    if not messages:
        assert first is not None
        assert last is not None
        yield Run(first, last, messages)
        return
    start = size = 0
    begin = messages[0].seq if first is None else first
    for place, message in enumerate(messages):
        size += _size(message)
        if size >= RUN_BYTES and place + 1 < len(messages):
            yield Run(begin, message.seq, messages[start : place + 1])
            start, size, begin = place + 1, 0, message.seq + 1
    yield Run(begin, messages[-1].seq if last is None else last, messages[start:] if start else messages)


def _size(message: Message) -> int:
    return len(message.body) + len(message.metadata_json or "") + OVERHEAD


def _encode(run: Run, epoch: UUID) -> bytes:
    messages = run.messages
    if messages is None:
        return _PREFIX.pack(VERSION, epoch.bytes, run.first, run.last, 0)
    bodies = [message.body for message in messages]
    table = to_json(
        [
            _column([message.seq - run.first for message in messages]),
            _column([message.topic for message in messages]),
            _column([message.key for message in messages]),
            [len(body) for body in bodies],
            _column([message.content_type for message in messages]),
            _column([message.metadata_json for message in messages]),
            _column([message.created_at for message in messages]),
            _column([message.expires_at for message in messages]),
        ]
    )
    prefix = _PREFIX.pack(VERSION, epoch.bytes, run.first, run.last, len(table))
    return b"".join([prefix, table, *(message.message_id.bytes for message in messages), *bodies])


def _column(values: list[Any]) -> Any:
    first = values[0] if values else None
    return first if values.count(first) == len(values) else values


def _decode_messages(encoded: bytes) -> list[Message]:
    _, _, first, last, size = _PREFIX.unpack_from(encoded)
    start = _PREFIX.size + size
    offsets, topics, keys, sizes, types, metadata, created, expires = from_json(encoded[_PREFIX.size : start])
    ids = start
    begin = start + 16 * len(sizes)
    messages = []
    rows = zip(*map(_values, (offsets, topics, keys, types, metadata, created, expires)), sizes, strict=False)
    for offset, topic, key, content_type, metadata_json, created_at, expires_at, length in rows:
        end = begin + length
        messages.append(
            Message(
                first + offset,
                UUID(bytes=encoded[ids : ids + 16]),
                topic,
                key,
                encoded[begin:end],
                content_type,
                metadata_json,
                created_at,
                expires_at,
            )
        )
        ids, begin = ids + 16, end
    if begin != len(encoded) or min(sizes, default=0) < 0:
        raise ValueError(f"expected {begin} bytes, got {len(encoded)}")
    seqs = [message.seq for message in messages]
    if seqs and not (first <= seqs[0] and seqs[-1] <= last and all(map(lt, seqs, seqs[1:]))):
        raise ValueError(f"expected events in their order from {first} to {last}")
    return messages


def _values(column: Any) -> Any:
    return column if isinstance(column, list) else repeat(column)
