"""Listeners: called in this process before `emit` returns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from eventbus_fastapi.errors import InvalidEvent, InvalidHandler, InvalidPattern
from eventbus_fastapi.events import Event
from eventbus_fastapi.pipeline.listeners import Listeners


class UserChanged(Event):
    id: int = 1


class UserCreated(UserChanged, topic="user.created"): ...


class OrderPaid(Event, topic="order.paid"): ...


@pytest.fixture
def listeners() -> Listeners:
    return Listeners()


@pytest.fixture
def heard() -> list[str]:
    return []


async def test_emit_returns_when_all_listeners_have_run_in_the_order_of_their_registration(
    listeners: Listeners, heard: list[str]
) -> None:
    @listeners.listener(UserCreated)
    async def first(event: UserCreated) -> None:
        await asyncio.sleep(0)
        heard.append(f"first {event.id}")

    @listeners.listener(UserCreated)
    async def second(event: UserCreated) -> None:
        heard.append(f"second {event.id}")

    await listeners.emit(UserCreated(id=5))
    assert heard == ["first 5", "second 5"]


async def test_a_listener_hears_the_events_of_its_classes_their_subclasses_and_its_patterns(
    listeners: Listeners, heard: list[str]
) -> None:
    listeners.listener(UserChanged)(lambda event: heard.append("class"))
    listeners.listener("user.*", OrderPaid)(lambda event: heard.append("pattern or class"))
    listeners.listener("#")(lambda event: heard.append("all topics"))
    await listeners.emit(UserCreated())
    assert heard == ["class", "pattern or class", "all topics"]
    heard.clear()
    await listeners.emit(OrderPaid())
    assert heard == ["pattern or class", "all topics"]
    heard.clear()
    await listeners.emit(UserChanged())
    assert heard == ["class"]


async def test_a_listener_that_is_registered_later_hears_later_events(listeners: Listeners, heard: list[str]) -> None:
    await listeners.emit(UserCreated())
    listeners.listener(UserCreated)(lambda event: heard.append("heard"))
    await listeners.emit(UserCreated())
    assert heard == ["heard"]


async def test_errors_are_raised_together_when_all_have_run(listeners: Listeners, heard: list[str]) -> None:
    def fail(event: UserCreated) -> None:
        raise ValueError("one")

    async def fail_too(event: UserCreated) -> None:
        raise LookupError("two")

    listeners.listener(UserCreated)(fail)
    listeners.listener(UserCreated)(fail_too)
    listeners.listener(UserCreated)(lambda event: heard.append("heard"))
    with pytest.raises(ExceptionGroup, match="2 of 3 listeners failed on UserCreated") as caught:
        await listeners.emit(UserCreated())
    assert [str(error) for error in caught.value.exceptions] == ["one", "two"]
    assert heard == ["heard"]


async def test_a_cancelled_emit_calls_no_more_listeners(listeners: Listeners, heard: list[str]) -> None:
    runs = asyncio.Event()

    async def wait(event: UserCreated) -> None:
        runs.set()
        await asyncio.Event().wait()

    listeners.listener(UserCreated)(wait)
    listeners.listener(UserCreated)(lambda event: heard.append("heard"))
    task = asyncio.create_task(listeners.emit(UserCreated()))
    await runs.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert heard == []


async def test_async_listeners_run_in_the_task_that_emits_and_sync_ones_in_a_thread(listeners: Listeners) -> None:
    seen: list[object] = []

    async def here(event: UserCreated) -> None:
        seen.append(asyncio.current_task())

    listeners.listener(UserCreated)(here)
    listeners.listener(UserCreated)(lambda event: seen.append(threading.current_thread()))
    await listeners.emit(UserCreated())
    assert seen[0] is asyncio.current_task()
    assert seen[1] is not threading.main_thread()


async def test_emitting_what_is_no_event_is_refused(listeners: Listeners) -> None:
    for emitted, shown in ((UserCreated, "the class UserCreated itself"), ({}, "dict")):
        with pytest.raises(InvalidEvent, match=f"expected an Event, got {shown}"):
            await listeners.emit(emitted)  # type: ignore[arg-type]


async def with_dependency(event: UserCreated, mailer: str) -> None: ...
async def without_event() -> None: ...
async def yields(event: UserCreated) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    ("listener", "message"),
    [
        (with_dependency, "listener 'with_dependency': it is called with the event alone, and needs mailer"),
        (without_event, "listener 'without_event': its first parameter must take the event"),
        (yields, "listener 'yields': it must not yield"),
        (dict, "listener 'dict': expected a function"),
        (5, "listener 'int': expected a function"),
    ],
)
def test_what_cannot_be_called_with_an_event_alone_is_refused(
    listeners: Listeners, listener: Any, message: str
) -> None:
    with pytest.raises(InvalidHandler, match=message):
        listeners.listener(UserCreated)(listener)


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ((), InvalidEvent, "give at least one Event class or pattern to listen to"),
        (("user.",), InvalidPattern, "segment 2 is empty"),
        ((dict,), InvalidEvent, "got the class dict"),
        ((with_dependency,), InvalidEvent, "got the function with_dependency; give the decorator what to wait for"),
    ],
)
def test_what_cannot_be_listened_to_is_refused(
    listeners: Listeners, wanted: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        listeners.listener(*wanted)
