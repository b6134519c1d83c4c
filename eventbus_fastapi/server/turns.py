"""Turns: addresses that keep the event loop busy share one place in it, so that others hardly notice.

    light:  read ─▶ done at once
    heavy:  read ─▶ line ─(one of the line in a turn of the loop)─▶ a little is done ─▶ line …

An address has a share of the loop's time, which the work of all its connections is taken from and which fills again by
itself; a new connection does not fill it. While there is something in it, nothing waits. Whoever has used it up stands
in line with all others like it. There the address that has used the least is next, and of its connections the one that
has: who shares an address with others, and asks for little, waits for one piece of their work, not for all of it.

While others are at work the line is held up: as long as what they have just asked for may take, in turns of the loop in
which they have something to do, and until what one of the line has begun is done; but for some milliseconds at most. So
those in line have what is left of the loop, and who floods alone waits for nobody.

What is parsed in one piece cannot be interrupted, and what others wait for it grows with its square. So after a long
one the next large text of its address waits, the longer that one took the more, while others are there.

Work of unknown size is measured, by the processor's time of this thread: a busy machine is not held against anybody.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from time import monotonic, thread_time
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

PART = 0.05
"""Of the loop's time that one address may use without standing in line."""
BURST = 0.002
"""Seconds of work that it may use at once."""
MOST_OWED = 0.1
"""Seconds of work that are held against it at most: it is out of the line two seconds after a flood."""
QUANTUM = 0.001
"""Seconds of work that a turn is good for. Who uses more comes later the next time."""
SHARED = 1.0
"""Seconds that others count as there after they have worked."""
PATIENCE = 0.005
"""Seconds that the line is held up at most."""
QUIET = 0.003
"""Seconds that it is held up after others have worked: what they ask for is under way."""
IDLE = 0.0001
"""Seconds of a turn of the loop in which nobody has anything to do, at most."""
PAUSE = 0.001
"""Seconds until it is looked again whether the line may go on."""
LARGE = 16_384
"""Bytes of a text that may take long to parse."""
LONG = 0.0005
"""Seconds: a text that takes n times as long to parse has the next one wait n times as long as it took."""
LONGEST_HOLD = 10.0
RECHECK = 0.05
"""Seconds until it is looked again whether others are still there."""
SWEEP_AT = 1_000
"""Addresses that are remembered at least with no connection left."""

T = TypeVar("T")


class _Queue(Generic[T]):
    """Those that wait: who has used the least is next. Whoever comes anew counts as having used what the last one had:
    it need not wait for those who were here before to use as much again, nor may it go first for ever.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._numbers = itertools.count()
        self._passed = 0.0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, member: T, used: float) -> float:
        """Return how much it counts as having used."""
        used = max(used, self._passed)
        heapq.heappush(self._heap, (used, next(self._numbers), member))
        return used

    def first(self) -> T:
        return self._heap[0][2]

    def pop(self) -> T:
        self._passed, _, member = heapq.heappop(self._heap)
        return member


class Account:
    """What one address has left of its share, and those of its connections that wait."""

    __slots__ = ("__weakref__", "_at", "_left", "address", "gate", "held_until", "is_in_line", "used", "waiting")

    def __init__(self, address: str) -> None:
        self.address = address
        self._left = BURST
        self._at = monotonic()
        self.used = 0.0
        """Seconds of work that were done in line."""
        self.is_in_line = False
        self.waiting: _Queue[tuple[Share, Callable[[], None]]] = _Queue()
        self.held_until = 0.0
        """When a large text may be parsed again."""
        self.gate = asyncio.Lock()

    def left(self, now: float) -> float:
        """Return how many seconds of work may be done without standing in line."""
        self._left = min(self._left + (now - self._at) * PART, BURST)
        self._at = now
        return self._left

    def is_as_new(self, now: float) -> bool:
        """True if nothing is held against the address."""
        return self.left(now) >= BURST and self.held_until <= now

    def take(self, seconds: float) -> None:
        self._left = max(self._left - seconds, -MOST_OWED)


class Turns:
    """The line of one event loop; see `turns_of`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._line: _Queue[Account] = _Queue()
        self._accounts: WeakValueDictionary[str, Account] = WeakValueDictionary()
        self._remembered: dict[str, Account] = {}
        self._sweep_at = SWEEP_AT
        self._light: Account | None = None
        self._light_at = 0.0
        self._is_going = False
        self.working: Share | None = None
        """Who has begun with what takes several turns of the loop."""
        self.working_since = 0.0
        self._ended_at = 0.0
        self._served_at = 0.0

    def account(self, address: str) -> Account:
        """Return the account of an address: while it is in use, or its share is not full, it is the same."""
        account = self._accounts.get(address)
        if account is None:
            account = self._accounts[address] = Account(address)
        return account

    def note_light(self, account: Account, now: float) -> None:
        """Note that somebody works who need not wait."""
        self._light, self._light_at = account, now

    def is_shared(self, account: Account, now: float) -> bool:
        """True while others are there, whom the work of this one would hold up."""
        return self._light is not account and now - self._light_at < SHARED

    def wait(self, share: Share, begin: Callable[[], None]) -> None:
        """Call `begin` when it is its turn: not before the next turn of the loop."""
        account = share.account
        share.used = account.waiting.add((share, begin), share.used)
        self._enter(account)

    def _enter(self, account: Account) -> None:
        if account.is_in_line:
            return
        account.is_in_line = True
        account.used = self._line.add(account, account.used)
        if not self._is_going:
            self._is_going = True
            self._begin_turn()

    def _begin_turn(self) -> None:
        """Go on in the next turn of the loop, which shows how long this one takes."""
        self._loop.call_soon(self._go_on)
        self._ended_at = monotonic()

    def _go_on(self) -> None:
        now = monotonic()
        if self._is_held_up(now):
            self._loop.call_later(PAUSE, self._begin_turn)  # to ask in every turn would hold others up as well
            return
        self._served_at = now
        try:
            self._serve()
        finally:
            self._is_going = len(self._line) > 0
            if self._is_going:
                self._begin_turn()

    def _is_held_up(self, now: float) -> bool:
        if now - self._served_at >= PATIENCE:
            return False
        account = self._line.first()
        if not self.is_shared(account, now) or account.left(now) > 0:
            return False
        return (
            now - self._ended_at > IDLE
            or now - self._light_at < QUIET
            or (self.working is not None and now - self.working_since < PATIENCE)
        )

    def _serve(self) -> None:
        account = self._line.pop()
        share, begin = account.waiting.pop()
        share.used += QUANTUM
        account.used += QUANTUM
        share.allowed = QUANTUM
        account.is_in_line = False
        if account.waiting:
            self._enter(account)
        begin()

    def remember(self, account: Account) -> None:
        """Keep an account that was taken from, also when its last connection is gone, until it is as good as new."""
        self._remembered[account.address] = account
        if len(self._remembered) <= self._sweep_at:
            return
        now = monotonic()
        self._remembered = {address: kept for address, kept in self._remembered.items() if not kept.is_as_new(now)}
        self._sweep_at = max(SWEEP_AT, 2 * len(self._remembered))


class Share:
    """What one connection may do. `address`: whose it is, as `address_of` names it."""

    __slots__ = ("_turns", "account", "allowed", "used")

    def __init__(self, loop: asyncio.AbstractEventLoop, address: str) -> None:
        self._turns = turns_of(loop)
        self.account = self._turns.account(address)
        self.used = 0.0
        """Seconds of work that were done in line."""
        self.allowed = 0.0
        """What is left of its last turn."""

    def spend(self, seconds: float) -> None:
        """Take work that was done in one piece from the share."""
        account, now = self.account, monotonic()
        left = account.left(now)
        if left > seconds:
            self._turns.note_light(account, now)
        elif left <= 0:
            beyond = seconds - self.allowed
            self.allowed = max(-beyond, 0.0)
            if beyond > 0:
                self.used += beyond
                account.used += beyond
        account.take(seconds)
        self._turns.remember(account)
        if seconds > QUANTUM:
            account.held_until = max(account.held_until, now + min(seconds * seconds / LONG, LONGEST_HOLD))

    @property
    def is_used_up(self) -> bool:
        """True: stand in line before more is done."""
        return self.allowed <= 0 and self.account.left(monotonic()) <= 0

    def when_free(self, begin: Callable[[], None]) -> None:
        """Call `begin` in a turn of its own: at once if there is something in the share, else when it is its turn."""
        if self.is_used_up:
            self._turns.wait(self, begin)
        else:
            begin()

    async def free(self) -> None:
        """Return when there is something in the share; at once if there is."""
        if self.is_used_up:
            await self.turn()

    async def turn(self) -> None:
        """Return when it is the caller's turn, in line even if there is something in the share."""
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def reach() -> None:
            if not reached.done():  # the caller was cancelled
                reached.set_result(None)

        self._turns.wait(self, reach)
        await reached

    def begin(self) -> None:
        """Begin with what takes several turns of the loop: the line waits for its `end`, but not for long."""
        if self.account.left(monotonic()) <= 0:
            self._turns.working, self._turns.working_since = self, monotonic()

    def end(self) -> None:
        """It is done."""
        if self._turns.working is self:
            self._turns.working = None

    async def read(self, size: int, parse: Callable[[], T]) -> T:
        """Return what is parsed of so many bytes, in one piece: at once, or when the address may go on with such."""
        if size > LARGE:
            await self._paid()
        began = thread_time()
        try:
            return parse()
        finally:
            self.spend(thread_time() - began)

    async def _paid(self) -> None:
        """Return when the last long piece of the address is paid for. Those that wait for it go on one by one."""
        account = self.account
        async with account.gate:
            while True:
                now = monotonic()
                held = account.held_until - now
                if held <= 0 or not self._turns.is_shared(account, now):
                    return
                await asyncio.sleep(min(held, RECHECK))


_lines: dict[asyncio.AbstractEventLoop, Turns] = {}


def turns_of(loop: asyncio.AbstractEventLoop) -> Turns:
    """Return the line of an event loop: whoever serves connections there has the same."""
    turns = _lines.get(loop)
    if turns is None:
        for closed in [each for each in tuple(_lines) if each.is_closed()]:  # as those of tests, one after the other
            _lines.pop(closed, None)
        turns = _lines[loop] = Turns(loop)
    return turns
