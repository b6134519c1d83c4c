"""The log as operators look at it: newest first, in pages of bounded work, and its topics."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from eventbus_fastapi import EventBus
from eventbus_fastapi.errors import InvalidEvent, InvalidPattern, NotRunning
from eventbus_fastapi.pipeline import log_view
from eventbus_fastapi.pipeline.log_view import LogPage, LogView

pytestmark = pytest.mark.databases("sqlite")


@pytest.fixture
def view(bus: EventBus) -> LogView:
    return bus.node.log_view


def seqs(page: LogPage) -> list[int]:
    return [listed.entry.seq for listed in page.events]


async def test_the_newest_come_first_and_pages_lead_to_the_older_and_back(bus: EventBus, view: LogView) -> None:
    await bus.publish_many([("a", number) for number in range(5)])

    first = await view.page(limit=2)
    second = await view.page(limit=2, before=first.older)
    third = await view.page(limit=2, before=second.older)
    back = await view.page(limit=2, after=second.newer)

    assert (seqs(first), first.newer) == ([5, 4], None)
    assert seqs(second) == [3, 2]
    assert (seqs(third), third.older) == ([1], None)
    assert (seqs(back), back.newer) == ([5, 4], None)
    assert back.older is not None
    assert seqs(await view.page(limit=2, before=back.older)) == [3, 2]


async def test_only_topics_that_match_are_shown_with_the_beginning_of_their_payload(
    bus: EventBus, view: LogView
) -> None:
    await bus.publish_many([("order.created", "x" * 1_000), ("user.created", 1), ("order.paid", {"a": 1})])

    page = await view.page(["order.*"])

    assert seqs(page) == [3, 1]
    assert [listed.beginning for listed in page.events] == [b'{"a":1}', b"x" * 160]
    assert (page.newer, page.older) == (None, None)


async def test_what_is_rare_is_looked_for_in_a_part_of_the_log_at_a_time(
    bus: EventBus, view: LogView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_view, "PAGE", 3)
    monkeypatch.setattr(log_view, "PAGES", 2)
    await bus.publish_many([("rare", 0), *[("a", number) for number in range(10)]])

    first = await view.page(["rare"])
    second = await view.page(["rare"], before=first.older)
    upwards = await view.page(["rare"], after=2)

    assert (seqs(first), first.older) == ([], 6)
    assert (seqs(second), second.older) == ([1], None)
    assert (seqs(upwards), upwards.newer) == ([], 8)


async def test_a_time_bounds_the_page(bus: EventBus, view: LogView) -> None:
    await bus.publish_many([("a", number) for number in range(3)])
    hour = timedelta(hours=1)
    now = datetime.now(UTC)

    assert seqs(await view.page(since=now - hour, until=now + hour)) == [3, 2, 1]
    assert seqs(await view.page(since=now + hour)) == []
    assert seqs(await view.page(until=now - hour)) == []


async def test_topics_are_those_of_the_newest_events(
    bus: EventBus, view: LogView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_view, "COUNTED", 3)
    await bus.publish_many([("old", 0), ("b", 1), ("a", 2), ("a", 3)])

    topics = await view.topics()

    assert [(each.topic, each.events, each.last_seq) for each in topics.topics] == [("a", 2, 4), ("b", 1, 2)]
    assert topics.after == 1


async def test_what_cannot_be_meant_is_refused(bus: EventBus, view: LogView) -> None:
    with pytest.raises(InvalidPattern):
        await view.page(["a..b"])
    with pytest.raises(InvalidEvent):
        await view.page(since=datetime(2026, 1, 1))  # noqa: DTZ001 - that is what is refused
    await bus.stop()
    with pytest.raises(NotRunning):
        await view.page()
