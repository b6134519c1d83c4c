"""Channels: what the live subscriptions with the same patterns share.

The dispatcher cuts the events that match a set of patterns into batches, once per node. A channel keeps the newest
batches; each subscription only remembers its place in them. So a thousand readers of one pattern cost one list, and a
frame built from a batch is built once (`Batch.text`). How much is kept is bounded for the whole node (`Tail`): when the
oldest page goes, a subscription that still needed it has overflowed.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from eventbus_fastapi.events import Message

BATCH_EVENTS = 1_000
BATCH_BYTES = 262_144


class Batch:
    """A run of events in the order of the log, shared by all who read it. Never changed after it was made."""

    __slots__ = ("_texts", "before", "charge", "expires", "messages")

    def __init__(self, messages: Sequence[Message], before: int = 0) -> None:
        self.messages = messages
        self.before = before
        """How many events its channel had before it."""
        self.expires = any(message.expires_at is not None for message in messages)
        """True if some of it may expire before it is handed out."""
        self.charge: Callable[[int], None] | None = None
        """Called with the bytes of each text that is kept here; None: nobody counts them."""
        self._texts: dict[Hashable, str] = {}

    @property
    def last_seq(self) -> int:
        """The highest seq in it; 0 if it holds only events that are not stored."""
        return self.messages[-1].seq

    def text(self, key: Hashable, render: Callable[[Sequence[Message]], str]) -> str:
        """Return what `render` makes of the events, made once per `key`."""
        text = self._texts.get(key)
        if text is None:
            text = self._texts[key] = render(self.messages)
            if self.charge is not None:
                self.charge(sys.getsizeof(text))
        return text


class Gap(NamedTuple):
    """Events that were asked for and will not come."""

    first_seq: int
    last_seq: int
    reason: str
    """retention, overflow, or epoch: it is another log, which is read from its beginning (both seqs are 0)."""


class CaughtUp(NamedTuple):
    """History ends here; live events follow."""

    seq: int


Item = Batch | Gap | CaughtUp


class Reader(Protocol):
    """What a channel needs of a subscription."""

    def notify(self) -> None:
        """There is a new batch, or old ones went."""

    def leave(self) -> None:
        """The channel ends: go back to reading the log."""


def cut(messages: Sequence[Message], before: int = 0) -> list[Batch]:
    """Cut events into batches that fit a frame."""
    batches: list[Batch] = []
    start = size = 0
    for place, message in enumerate(messages):
        size += len(message.body) + 256  # about what the envelope takes on the wire
        if size >= BATCH_BYTES or place - start + 1 >= BATCH_EVENTS:
            batches.append(Batch(messages[start : place + 1], before + start))
            start, size = place + 1, 0
    if start < len(messages):
        batches.append(Batch(messages[start:] if start else messages, before + start))
    return batches


class Channel:
    """The newest batches for one set of patterns, and who reads them."""

    def __init__(self, patterns: tuple[str, ...], covered_from: int) -> None:
        self.patterns = patterns
        self.covered_from = covered_from
        """Every matching event after this seq that was dispatched is in the batches."""
        self.readers: set[Reader] = set()
        self.batches: deque[Batch] = deque()
        self.first = 0
        """Number of the oldest batch kept; batches are numbered from 0 for the life of the channel."""
        self.events = 0
        """How many events it ever had."""

    @property
    def end(self) -> int:
        """The number that the next batch gets."""
        return self.first + len(self.batches)

    def append(self, messages: Sequence[Message]) -> list[Batch]:
        """Add events; return the batches that they were cut into."""
        batches = cut(messages, self.events)
        self.batches.extend(batches)
        self.events += len(messages)
        return batches

    def drop(self, count: int, up_to: int) -> None:
        """Forget the oldest batches, which hold what was dispatched up to a seq."""
        for _ in range(count):
            self.batches.popleft()
        self.first += count
        self.covered_from = max(self.covered_from, up_to)

    def since(self, number: int, most: int) -> list[Batch]:
        """Return up to `most` batches from `number` on."""
        start = number - self.first
        return [self.batches[place] for place in range(start, min(start + most, len(self.batches)))]

    def before(self, number: int) -> int:
        """Return how many events the channel had before batch `number`, which is kept or the next."""
        return self.batches[number - self.first].before if number < self.end else self.events

    def find(self, seq: int) -> int:
        """Return the number of the first batch with events after `seq`."""
        number = self.end
        for batch in reversed(self.batches):
            if 0 < batch.last_seq <= seq:
                break
            number -= 1
        return number

    def notify(self) -> None:
        for reader in tuple(self.readers):
            reader.notify()


class Live(Protocol):
    """What a subscription needs of the dispatcher."""

    @property
    def head(self) -> int:
        """The log has reached at least this seq."""

    @property
    def position(self) -> int:
        """Everything up to this seq was given to the channels."""

    def attach(self, reader: Reader, patterns: tuple[str, ...], position: int) -> Channel | None:
        """Join the channel of these patterns if nothing after `position` would be missed; else return None."""

    def detach(self, reader: Reader, channel: Channel) -> None:
        """Leave the channel."""


@dataclass(slots=True, eq=False)
class Page:
    """What one page of the log left in the channels."""

    size: int
    """Bytes, estimated; texts count as they are made."""
    last_seq: int
    parts: list[tuple[Channel, list[Batch]]]
    is_kept: bool = False


class Tail:
    """Bounds what all channels keep together, by dropping whole pages, oldest first. One page is always kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pages: deque[Page] = deque()
        self.size = 0
        """Bytes kept, estimated."""

    def add(self, page: Page) -> None:
        self._pages.append(page)
        self.size += page.size
        page.is_kept = True
        charge = partial(self._charge, page)
        for _, batches in page.parts:
            for batch in batches:
                batch.charge = charge
        while self.size > self._limit and len(self._pages) > 1:
            self._drop(self._pages.popleft())

    def _drop(self, page: Page) -> None:
        self.size -= page.size
        page.is_kept = False
        for channel, batches in page.parts:
            channel.drop(len(batches), page.last_seq)

    def _charge(self, page: Page, size: int) -> None:
        """Count a text that was made of a page. What is too much then goes with the next page."""
        page.size += size
        if page.is_kept:
            self.size += size

    def clear(self) -> None:
        """Forget everything, when nobody reads."""
        for page in self._pages:
            page.is_kept = False
        self._pages.clear()
        self.size = 0
