"""The rescuer looks at each group as often as its consumer asks for."""

from __future__ import annotations

from eventbus_fastapi.pipeline.rescuer import Rescuer
from eventbus_fastapi.store import Store
from eventbus_fastapi.store.group import Group, Look
from tests.drafts import draft
from tests.waiting import eventually


class Noting:
    """A consumer that takes down what it learns."""

    def __init__(self, group: Group, poll_interval: float) -> None:
        self.group = group
        self.poll_interval = poll_interval
        self.looks: list[Look | None] = []

    async def note(self, look: Look | None) -> None:
        self.looks.append(look)


async def test_each_group_is_looked_at_in_its_own_interval(store: Store) -> None:
    often = Noting(await store.groups.ensure("often", ["#"], after=0), 0.05)
    rarely = Noting(await store.groups.ensure("rarely", ["#"], after=0), 60.0)
    rescuer = Rescuer(store.groups, lambda: [often, rarely])

    pause = await rescuer.run_once()

    assert pause is not None
    assert 0 < pause < 0.1

    async def is_looked_at_again() -> bool:
        await rescuer.run_once()
        return len(often.looks) == 3

    await eventually(is_looked_at_again)
    assert len(rarely.looks) == 1


async def test_a_group_that_comes_later_is_looked_at_at_once_and_then_together_with_the_others(store: Store) -> None:
    first = Noting(await store.groups.ensure("first", ["#"], after=0), 60.0)
    consumers = [first]
    rescuer = Rescuer(store.groups, lambda: consumers)
    await rescuer.run_once()
    second = Noting(await store.groups.ensure("second", ["#"], after=0), 60.0)
    consumers.append(second)

    pause = await rescuer.run_once()

    assert (len(first.looks), len(second.looks)) == (1, 1)
    assert pause is not None
    assert 50 < pause < 61


async def test_without_groups_it_waits_for_its_bell(store: Store) -> None:
    assert await Rescuer(store.groups, list).run_once() is None


async def test_a_group_whose_lease_ends_before_its_time_is_looked_at_when_that_ends(store: Store) -> None:
    group = await store.groups.ensure("rarely", ["#"], after=0)
    await store.append([draft()])
    log = (await store.read(0, 10)).messages
    await store.groups.claim(group, log, up_to=1, owner="dead", lease=0.2)
    rarely = Noting(group, 60.0)
    rescuer = Rescuer(store.groups, lambda: [rarely])

    await rescuer.run_once()

    async def is_rescued() -> bool:
        await rescuer.run_once()
        look = rarely.looks[-1]
        return look is not None and look.lease_ends is None

    await eventually(is_rescued)
    assert rarely.looks[-1] is not None
    assert rarely.looks[-1].retry_due is not None
