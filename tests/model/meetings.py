"""The machine with the steps that chance seldom brings together: each rule is several calls in a row, and one more
place where a fault would show. What they draw varies them; what the machine has done before, too.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from eventbus_fastapi.bus import EventBus
from tests.model.machine import (
    GROUPS,
    RELAY,
    SECOND,
    TOPICS,
    Declared,
    Machine,
    Wish,
    delays,
    endings,
    patterns,
    pick,
    some,
    step,
)

EVERYTHING = ["#"]


class Meetings(Machine):
    """See the module's docstring. A subclass has the place."""

    # --- readers ---

    @precondition(lambda self: self.hungry and self.may_write)
    @rule(
        which=some,
        topics=st.lists(st.sampled_from(TOPICS), min_size=3, max_size=6),
        is_alike=st.booleans(),
        later=st.lists(st.sampled_from(TOPICS), max_size=3),
    )
    @step
    async def overtake(self, which: int, topics: list[str], is_alike: bool, later: list[str]) -> None:
        """Somebody else begins at the end of the log, which one that reads history has yet to reach, and is live. What
        comes then, comes one by one.
        """
        old = pick(self.hungry, which)
        await self._publish(old.bus, [[Wish(topic, None, None, None, None) for topic in topics]])
        self.readings.remove(old)
        self.readings.append(old)
        chosen = old.subscription.patterns if is_alike else EVERYTHING
        subscription = await old.bus.node.subscribe(chosen, "now")
        self.add(self._reading(old.bus, subscription, self.log.last_seq))
        await self._give_out(old.bus, later)
        await self.read_some(old, 1)

    @precondition(lambda self: self.may_write and self.log.last_seq > 1)
    @rule(
        node=some,
        chosen=st.one_of(st.just(EVERYTHING), patterns),
        missed=st.integers(1, 3),
        later=st.lists(st.sampled_from(TOPICS), min_size=3, max_size=6),
        limit=st.sampled_from([1, None]),
    )
    @step
    async def join(self, node: int, chosen: list[str], missed: int, later: list[str], limit: int | None) -> None:
        """Somebody reads the little that he has missed, and joins one with the same patterns who is live. Meanwhile
        more has come, so that he may step from history to live between two batches.
        """
        bus: EventBus = pick(self.buses, node)
        for after in (self.log.last_seq, max(self.log.last_seq - missed, self.log.first_seq - 1)):
            self.add(self._reading(bus, await bus.node.subscribe(chosen, after), after))
        reading = self.readings[-1]
        await self._give_out(bus, later)
        await self.read_some(reading, limit)
        await self.read_to_the_end(reading)

    async def _give_out(self, bus: EventBus, topics: list[str]) -> None:
        """Those who are live get it one by one."""
        for topic in topics:
            await self._publish(bus, [[Wish(topic, None, None, None, None)]])
            await bus.node.dispatcher.run_once()

    @precondition(lambda self: self.readings and self.may_write)
    @rule(which=some, topics=st.lists(st.sampled_from(TOPICS), min_size=2, max_size=4))
    @step
    async def let_expire(self, which: int, topics: list[str]) -> None:
        """A reader takes one event and lets others wait, until their time is over."""
        reading = pick(self.readings, which)
        await self._publish(reading.bus, [[Wish(topic, None, 10, None, None) for topic in topics]])
        await self.read_some(reading, 1)
        self.move_clock(10 * SECOND)
        await self.read_some(reading, None)

    # --- groups ---

    @precondition(lambda self: self.may_write and self.behind)
    @rule(node=some, which=some, delay=st.sampled_from([0, 5, 30]), is_in_time=st.booleans())
    @step
    async def fail(self, node: int, which: int, delay: int, is_in_time: bool) -> None:
        """What somebody takes fails, one after another, and fails again, perhaps when its time is over."""
        name = pick(self.behind, which)
        holding = await self._claim(node, name, 4, 10)
        while holding is not None and holding.left:
            await self._settle(node, holding, ["retry"], 0)
        if not is_in_time:
            self.move_clock(10 * SECOND)
        holding = await self._hold_retries(node, name, 4, 10)
        if holding is not None:
            await self._settle(node, holding, ["retry"] * len(holding.left), delay)

    @precondition(lambda self: self.may_write and (self.behind or self.retrying))
    @rule(node=some, other=some, which=some, is_extended=st.booleans(), outcome=st.sampled_from(["ack", "retry"]))
    @step
    async def lose(self, node: int, other: int, which: int, is_extended: bool, outcome: str) -> None:
        """Somebody is not heard of until others have taken over what he held; then he goes on as if he held it."""
        name = pick(sorted({*self.behind, *self.retrying}), which)
        old = await self._hold_retries(node, name, 4, 5) or await self._claim(node, name, 4, 5)
        self.move_clock(5 * SECOND)
        await self._rescue(other)
        await self._hold_retries(other, name, 4, 30)
        if old is None:
            return
        if is_extended:
            await self._extend(node, old, 30)
        await self._settle(node, old, [outcome] * len(old.left), 0)

    @precondition(lambda self: self.may_write)
    @rule(node=some, name=st.sampled_from([*GROUPS, RELAY]), limit=st.integers(2, 4))
    @step
    async def lose_again(self, node: int, name: str, limit: int) -> None:
        """Nobody who takes these events is heard of again; the third time they are handed out alone."""
        await self._fill(node, name, [None, None, None], is_ordered=False, max_in_flight=None)
        await self._claim(node, name, 4, 5)
        for taker in (node, node + 1):
            self.move_clock(5 * SECOND)
            await self._rescue(taker)
            await self._hold_retries(taker, name, limit, 5)

    @precondition(lambda self: self.may_write)
    @rule(
        node=some,
        name=st.sampled_from(GROUPS),
        keys=st.lists(st.sampled_from(["x", "x", "y", None]), min_size=3, max_size=6),
        delay=delays,
        limit=st.integers(2, 4),
        outcomes=endings,
    )
    @step
    async def jam(
        self, node: int, name: str, keys: list[str | None], delay: int, limit: int, outcomes: list[str]
    ) -> None:
        """What is behind a failure of its key waits for it, whether it was claimed with it or comes later."""
        await self._fill(node, name, keys, is_ordered=True, max_in_flight=None)
        holding = await self._claim(node, name, 3, 30)
        if holding is not None:
            await self._settle(node, holding, ["retry"], delay)
        await self._claim(node, name, 4, 30)
        for _ in range(2):
            holding = await self._hold_retries(node, name, limit, 30)
            if holding is not None:
                await self._settle(node, holding, outcomes, 0)

    @precondition(lambda self: self.may_write)
    @rule(node=some, name=st.sampled_from(GROUPS), is_ordered=st.booleans(), most=st.integers(1, 3))
    @step
    async def crowd(self, node: int, name: str, is_ordered: bool, most: int) -> None:
        """What somebody has for another attempt takes room of what is new, and the other way round."""
        await self._fill(node, name, [None, "x", None, "y"], is_ordered=is_ordered, max_in_flight=most)
        holding = await self._claim(node, name, 4, 30)
        if holding is not None:
            await self._settle(node, holding, ["retry"], 0)
        await self._hold_retries(node, name, 1, 30)
        await self._claim(node, name, 4, 30)
        await self._hold_retries(node, name, 4, 30)

    @precondition(lambda self: self.may_write)
    @rule(node=some, is_first_settled=st.booleans(), delay=delays)
    @step
    async def wait_for_the_turn(self, node: int, is_first_settled: bool, delay: int) -> None:
        """One has something of the log in flight; another, who asks for more, gets it when nothing is left of that."""
        await self._fill(node, RELAY, [None, "x", "x"], is_ordered=False, max_in_flight=None)
        holding = await self._claim(node, RELAY, 2, 10) or await self._hold_retries(node, RELAY, 4, 10)
        if holding is not None and is_first_settled:
            await self._settle(node, holding, ["retry"], delay)
        for taker in (node + 1, node):
            await self._claim(taker, RELAY, 1, 10)
            await self._hold_retries(taker, RELAY, 1, 10)
            if holding is not None:
                await self._settle(node, holding, ["release"] * len(holding.left), 0)

    @precondition(lambda self: self.may_write)
    @rule(node=some, name=st.sampled_from(GROUPS), changed=st.sampled_from(["patterns", "order", "limit"]))
    @step
    async def change(self, node: int, name: str, changed: str) -> None:
        """Somebody takes the next events, as the group was before it was declared otherwise."""
        await self._fill(node, name, ["x", "x"], is_ordered=False, max_in_flight=None)
        declared = Declared(["a"] if changed == "patterns" else EVERYTHING, changed == "order", 5, None)
        await self._declare(node, name, "now", declared._replace(max_in_flight=2 if changed == "limit" else None))
        if name in self.behind:
            await self._claim(node, name, 2, 10, is_late=True)

    @precondition(lambda self: self.may_write)
    @rule(
        node=some,
        name=st.sampled_from([*GROUPS, RELAY]),
        is_alone=st.booleans(),
        outcomes=st.lists(st.sampled_from(["ack", "retry"]), max_size=3),
        count=st.integers(1, 2),
    )
    @step
    async def retain_beside_a_lease(
        self, node: int, name: str, is_alone: bool, outcomes: list[str], count: int
    ) -> None:
        """Nothing goes that somebody has in flight, though the group has read on and a part is settled."""
        if is_alone:  # nobody else needs anything of the log
            for each in self.groups:
                await self._reset(node, each, "now")
        await self._fill(node, name, [None] * 4, is_ordered=False, max_in_flight=None)
        holding = await self._claim(node, name, 4, 30)
        if holding is not None and outcomes:
            await self._settle(node, holding, outcomes, 0)
        await self._retain(node, None, count, None, None)

    async def _fill(
        self, node: int, name: str, keys: list[str | None], *, is_ordered: bool, max_in_flight: int | None
    ) -> None:
        """Have a group, declared like that, that has so much to take."""
        await self._declare(node, name, "now", Declared(EVERYTHING, is_ordered, 5, max_in_flight))
        await self._publish(pick(self.buses, node), [[Wish("a.b", key, None, None, None) for key in keys]])
