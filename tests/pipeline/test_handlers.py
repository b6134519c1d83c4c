"""Handlers: how they are registered, and how they are called with an event."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

import pytest
from fastapi import Depends
from typing_extensions import TypedDict

from eventbus_fastapi.backoff import Fixed, Sequence
from eventbus_fastapi.errors import (
    HandlerCancelled,
    HandlerTimeout,
    InvalidEvent,
    InvalidHandler,
    InvalidOutcome,
    InvalidPattern,
    UndecodablePayload,
)
from eventbus_fastapi.events import Event, Message
from eventbus_fastapi.pipeline.dependencies import Attempt, BusSession
from eventbus_fastapi.pipeline.executor import Executor
from eventbus_fastapi.pipeline.handlers import HandlerGroup
from eventbus_fastapi.pipeline.outcome import DEFAULT_BACKOFF, Ack, Dead, Discard, Retry, Snooze
from eventbus_fastapi.settings import Settings
from tests.pipeline.handling import ADA, UserCreated, call, handler_of, message_of

HERE = __name__.partition(".")[0]


@pytest.fixture
def executor() -> Iterator[Executor]:
    executor = Executor(Settings(), node="n1", threads=1)
    yield executor
    executor.close()


# --- the first parameter's type decides the decoding ---


@dataclass
class UserData:
    id: int
    name: str


class UserDict(TypedDict):
    id: int
    name: str


SEEN: list[Any] = []


@pytest.fixture(autouse=True)
def seen() -> list[Any]:
    SEEN.clear()
    return SEEN


async def take_model(event: UserCreated) -> None:
    SEEN.append(event)


async def take_dataclass(event: UserData) -> None:
    SEEN.append(event)


async def take_typed_dict(event: UserDict) -> None:
    SEEN.append(event)


async def take_any(event: Any) -> None:
    SEEN.append(event)


async def take_unannotated(event) -> None:  # type: ignore[no-untyped-def]
    SEEN.append(event)


async def take_message(event: Message) -> None:
    SEEN.append(event.seq)


@pytest.mark.parametrize(
    ("handler", "taken"),
    [
        (take_model, UserCreated(id=1, name="Ada")),
        (take_dataclass, UserData(1, "Ada")),
        (take_typed_dict, ADA),
        (take_any, ADA),
        (take_unannotated, ADA),
        (take_message, 7),
    ],
)
async def test_the_first_parameter_says_in_which_form_the_event_comes(
    handler: Callable[..., Any], taken: object, seen: list[Any]
) -> None:
    await call(handler)
    assert seen == [taken]


@pytest.mark.parametrize(("payload", "taken"), [("Hello", "Hello"), (b"\x00\xff", b"\x00\xff"), ([1, None], [1, None])])
async def test_a_payload_of_any_type_is_decoded_by_its_content_type(
    payload: object, taken: object, seen: list[Any]
) -> None:
    await call(take_any, payload)
    assert seen == [taken]


async def test_a_payload_of_another_form_is_an_error_of_that_event_that_does_not_show_it(executor: Executor) -> None:
    handler = handler_of(take_model)
    with pytest.raises(UndecodablePayload, match=r"^payload does not fit UserCreated: id: Input should be a valid int"):
        await executor.run(handler, message_of({"id": "secret"}))
    outcome = await executor.execute(handler, message_of({"id": "secret"}), 1)
    assert isinstance(outcome, Dead)
    assert "secret" not in outcome.error.to_json()
    assert await executor.execute(handler, message_of(), 1) == Ack()


# --- what it returns or raises ---


@pytest.mark.parametrize("result", [None, Ack(), Retry(5), Snooze(5), Discard("no")])
async def test_a_handler_returns_nothing_or_an_outcome(result: object) -> None:
    async def handle(event: UserCreated) -> object:
        return result

    assert await call(handle) is result


@pytest.mark.parametrize("result", [False, {}, Retry])
async def test_any_other_result_is_an_error(result: object) -> None:
    async def handle(event: UserCreated) -> object:
        return result

    with pytest.raises(InvalidOutcome):
        await call(handle)


async def test_a_sync_function_that_returns_a_coroutine_has_not_done_its_work() -> None:
    def handle(event: UserCreated) -> object:
        return take_model(event)

    with pytest.raises(InvalidOutcome, match="returned coroutine"):
        await call(handle)


async def test_an_attempt_that_fails_has_an_outcome_with_the_error_where_the_handler_raised_it(
    executor: Executor,
) -> None:
    async def handle(event: UserCreated, attempt: Attempt) -> None:
        raise ConnectionError("the mail server is away")

    handler = handler_of(handle, max_retries=1, backoff=Fixed(60))
    first = await executor.execute(handler, message_of(), 1)
    assert isinstance(first, Retry)
    assert first.after == 60
    assert first.error is not None
    assert (first.error.type, first.error.node, first.error.attempt) == ("ConnectionError", "n1", 1)
    assert first.error.traceback.splitlines()[1].endswith("in handle")
    assert isinstance(await executor.execute(handler, message_of(), 2), Dead)


def test_a_commit_that_fails_is_a_failure_of_the_attempt(executor: Executor) -> None:
    handler = handler_of(take_model, max_retries=1, backoff=Fixed(60))
    outcome = executor.decide(handler, ConnectionError("the commit failed"), 1)
    assert isinstance(outcome, Retry)
    assert outcome.after == 60
    assert isinstance(executor.decide(handler, ConnectionError("the commit failed"), 2), Dead)


async def test_a_handler_that_exits_fails_alone() -> None:
    async def handle(event: UserCreated) -> None:
        sys.exit(3)

    with pytest.raises(RuntimeError, match=r"called sys.exit\(3\)"):
        await call(handle)


async def test_a_handler_that_is_cancelled_from_within_fails_alone() -> None:
    async def handle(event: UserCreated) -> None:
        waiting = asyncio.ensure_future(asyncio.Event().wait())
        waiting.cancel()
        await waiting

    with pytest.raises(HandlerCancelled):
        await call(handle)


# --- sync functions ---


async def test_a_sync_handler_runs_in_a_thread(seen: list[Any]) -> None:
    def handle(event: UserCreated, attempt: Attempt) -> Discard:
        seen.append((event.id, attempt, threading.current_thread() is threading.main_thread()))
        return Discard("seen")

    assert await call(handle) == Discard("seen")
    assert seen == [(1, 1, False)]


def raise_stop(event: UserCreated) -> None:
    raise StopIteration


def raise_exit(event: UserCreated) -> None:
    sys.exit(1)


@pytest.mark.parametrize(
    ("handler", "message"), [(raise_stop, "a sync function raised StopIteration"), (raise_exit, "called sys.exit")]
)
async def test_whatever_a_sync_handler_raises_is_its_own_failure(handler: Callable[..., Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        await call(handler)


async def test_no_more_sync_handlers_run_than_there_are_threads(executor: Executor, seen: list[Any]) -> None:
    may_end = threading.Event()

    def handle(event: UserCreated) -> None:
        seen.append("begin")
        may_end.wait()
        seen.append("end")

    handler = handler_of(handle)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(executor.run(handler, message_of()))
        may_end.set()
    assert seen == ["begin", "end"] * 3


# --- timeout ---


async def test_a_timeout_cancels_the_handler_and_ends_its_dependencies(executor: Executor, seen: list[Any]) -> None:
    async def connect() -> AsyncIterator[None]:
        try:
            yield
        except BaseException as exc:
            seen.append(f"rollback after {type(exc).__name__}")
            raise

    async def handle(event: UserCreated, connection: None = Depends(connect)) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cancelled")

    handler = handler_of(handle, timeout=timedelta(milliseconds=5), group="shop.slow")
    with pytest.raises(HandlerTimeout, match=r"handler 'shop.slow' did not end within 0.005 seconds"):
        await executor.run(handler, message_of())
    assert seen == ["cancelled", "rollback after CancelledError"]


async def test_the_record_of_a_timeout_shows_where_the_handler_was(executor: Executor) -> None:
    async def handle(event: UserCreated) -> None:
        await asyncio.Event().wait()

    outcome = await executor.execute(handler_of(handle, timeout=0.005), message_of(), 1)
    assert isinstance(outcome, Retry)
    assert outcome.error is not None
    assert outcome.error.type == "eventbus_fastapi.errors.HandlerTimeout"
    assert "await asyncio.Event().wait()" in outcome.error.traceback


async def catch(event: UserCreated) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return


async def replace(event: UserCreated) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise ConnectionError("the driver was interrupted") from None


@pytest.mark.parametrize("handler", [catch, replace])
async def test_a_handler_cannot_hide_that_it_timed_out(executor: Executor, handler: Callable[..., Any]) -> None:
    with pytest.raises(HandlerTimeout):
        await executor.run(handler_of(handler, timeout=0.005), message_of())


async def test_a_timeout_of_something_in_the_handler_is_the_handlers_own_error(executor: Executor) -> None:
    async def handle(event: UserCreated) -> None:
        raise TimeoutError("the mail server did not answer")

    with pytest.raises(TimeoutError, match="the mail server did not answer"):
        await executor.run(handler_of(handle, timeout=60), message_of())


async def test_cancelling_the_task_is_no_timeout(executor: Executor, seen: list[Any]) -> None:
    runs = asyncio.Event()

    async def handle(event: UserCreated) -> None:
        runs.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(executor.execute(handler_of(handle, timeout=60), message_of(), 1))
    await runs.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_sync_handler_times_out_while_its_thread_runs_on_and_stays_taken(
    executor: Executor, seen: list[Any]
) -> None:
    may_end = threading.Event()

    def hang(event: UserCreated) -> None:
        may_end.wait()
        seen.append("the first ends after all")

    def handle(event: UserCreated) -> None:
        seen.append("the second gets its thread")

    with pytest.raises(HandlerTimeout):
        await executor.run(handler_of(hang, timeout=0.5), message_of())  # time enough for the thread to begin
    with pytest.raises(HandlerTimeout):
        await executor.run(handler_of(handle, timeout=0.005), message_of())
    assert seen == []
    may_end.set()
    await executor.run(handler_of(handle), message_of())
    assert seen == ["the first ends after all", "the second gets its thread"]


# --- classes ---


class Mailer:
    made = 0

    def __init__(self, host: str = "localhost") -> None:
        type(self).made += 1
        self.host = host

    async def handle(self, event: UserCreated, attempt: Attempt) -> None:
        SEEN.append((self.host, event.name, attempt))


class NeedsHost(Mailer):
    def __init__(self, host: str) -> None:
        super().__init__(host)


@pytest.fixture(autouse=True)
def no_mailers() -> None:
    Mailer.made = NeedsHost.made = 0


async def test_the_object_of_a_class_is_made_once_per_worker(executor: Executor, seen: list[Any]) -> None:
    handler = handler_of(Mailer)
    await executor.run(handler, message_of(), 1)
    await executor.run(handler, message_of(), 2)
    assert (seen, Mailer.made) == ([("localhost", "Ada", 1), ("localhost", "Ada", 2)], 1)
    await Executor(Settings()).run(handler, message_of())
    assert Mailer.made == 2


async def test_an_async_factory_makes_it_when_the_worker_prepares(executor: Executor, seen: list[Any]) -> None:
    async def connect() -> NeedsHost:
        return NeedsHost("mail.example")

    handler = handler_of(NeedsHost, factory=connect)
    await executor.prepare([handler, handler_of(take_model)])
    assert NeedsHost.made == 1
    await executor.run(handler, message_of())
    assert (seen, NeedsHost.made) == ([("mail.example", "Ada", 1)], 1)


async def test_a_factory_that_fails_is_asked_again(executor: Executor, seen: list[Any]) -> None:
    answers: list[object] = [ConnectionError("no mail server"), NeedsHost("mail.example")]

    def connect() -> NeedsHost:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, NeedsHost)
        return answer

    handler = handler_of(NeedsHost, factory=connect)
    with pytest.raises(ConnectionError, match="no mail server"):
        await executor.prepare([handler])
    await executor.run(handler, message_of())
    assert seen == [("mail.example", "Ada", 1)]


async def test_the_handle_of_a_class_may_be_sync_or_static(executor: Executor, seen: list[Any]) -> None:
    class Sync:
        def handle(self, event: UserCreated) -> None:
            seen.append("sync")

    class Static:
        @staticmethod
        async def handle(event: UserCreated) -> None:
            seen.append("static")

    await executor.run(handler_of(Sync), message_of())
    await executor.run(handler_of(Static), message_of())
    assert seen == ["sync", "static"]


# --- how a handler is described ---


def test_a_handler_has_sensible_defaults() -> None:
    handler = handler_of(take_model)
    assert handler.group == f"{HERE}.take_model"
    assert (handler.patterns, handler.queue, handler.priority) == (("user.*",), "default", 0)
    assert (handler.max_attempts, handler.timeout, handler.ordered_by) == (11, None, None)
    assert handler.backoff is DEFAULT_BACKOFF
    assert not handler.is_transactional


def test_a_handler_says_what_differs() -> None:
    group = HandlerGroup()
    group.handler(
        UserCreated,
        "#",
        group="welcome",
        queue="email",
        max_retries=3,
        timeout=timedelta(minutes=5),
        backoff=Fixed(1),
        priority=5,
        ordered_by="key",
    )(take_model)
    handler = group["welcome"]
    assert (handler.patterns, handler.queue, handler.priority) == (("user.created", "#"), "email", 5)
    assert (handler.max_attempts, handler.timeout, handler.ordered_by) == (4, 300.0, "key")
    assert handler.backoff == Fixed(1)


def test_a_sequence_of_delays_is_as_many_retries_unless_it_is_said_otherwise() -> None:
    assert handler_of(take_model, backoff=Sequence([60, 3600])).max_attempts == 3
    assert handler_of(take_model, backoff=Sequence([60, 3600]), max_retries=1).max_attempts == 2


def test_a_function_stays_what_it_is() -> None:
    assert HandlerGroup().handler("#")(take_model) is take_model


def test_a_script_has_the_name_that_it_would_be_imported_by(monkeypatch: pytest.MonkeyPatch) -> None:
    main = type(sys)("__main__")
    main.__file__ = "/srv/shop/worker.py"
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(take_model, "__module__", "__main__")
    assert handler_of(take_model).group == "worker.take_model"


# --- groups of handlers ---


def test_a_group_takes_the_handlers_of_another_also_later_ones() -> None:
    bus, users = HandlerGroup(), HandlerGroup()
    users.handler("#", group="first")(take_model)
    bus.include(users)
    users.handler("#", group="second")(take_any)
    assert [handler.group for handler in bus] == ["first", "second"]
    assert len(bus) == 2


def test_two_handlers_of_one_name_are_refused_wherever_they_meet() -> None:
    bus, users, orders = HandlerGroup(), HandlerGroup(), HandlerGroup()
    users.handler("#", group="same")(take_model)
    bus.include(users)
    with pytest.raises(InvalidHandler, match="there is a handler of this name already; give one of them another"):
        users.handler("#", group="same")(take_any)
    bus.include(orders)
    with pytest.raises(InvalidHandler, match="'same'"):
        orders.handler("#", group="same")(take_any)
    assert len(orders) == 0
    other = HandlerGroup()
    other.handler("#", group="new")(take_any)
    other.handler("#", group="same")(take_any)
    with pytest.raises(InvalidHandler, match="'same'"):
        bus.include(other)
    assert len(bus) == 1


def test_a_group_cannot_include_itself() -> None:
    bus, users = HandlerGroup(), HandlerGroup()
    bus.include(users)
    for group, included in ((bus, bus), (users, bus)):
        with pytest.raises(ValueError, match="cannot include itself"):
            group.include(included)


# --- what is refused ---


async def nothing() -> None: ...
async def by_name(*, event: UserCreated) -> None: ...
async def any_number(*events: UserCreated) -> None: ...
async def yields(event: UserCreated) -> AsyncIterator[None]:
    yield


def yields_in_a_thread(event: UserCreated) -> Iterator[None]:
    yield


def sync_transaction(event: UserCreated, session: BusSession) -> None: ...
async def provided_first(attempt: Attempt, event: UserCreated) -> None: ...
async def depends_first(event: Annotated[UserCreated, Depends(nothing)]) -> None: ...
async def of_a_class_that_pydantic_does_not_know(event: Mailer) -> None: ...
async def of_a_missing_class(event: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821


class NoHandle: ...


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (nothing, "it takes no event"),
        (by_name, "it takes no event"),
        (any_number, "it takes no event"),
        (yields, "it must not yield"),
        (yields_in_a_thread, "it must not yield"),
        (sync_transaction, "it asks for the bus's transaction, an async session, so it must be an async function"),
        (provided_first, "the first parameter takes the event, and attempt is provided otherwise"),
        (depends_first, "the first parameter takes the event, and event is provided otherwise"),
        (of_a_class_that_pydantic_does_not_know, "Pydantic cannot validate event: "),
        (of_a_missing_class, "event: Missing: name 'Missing' is not defined"),
        (NoHandle, r"the class NoHandle has no method handle\(self, event, …\)"),
        (NeedsHost, "the class NeedsHost is made without arguments, and needs host; give a factory="),
        (5, "expected a function, or a class with a method handle"),
    ],
)
def test_what_cannot_be_called_with_an_event_is_refused(handler: Any, message: str) -> None:
    with pytest.raises(InvalidHandler, match=message):
        handler_of(handler, group="shop.send")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": ""}, "the name of a group must be 1 to 255 bytes without spaces and control characters, got ''"),
        ({"group": "ü" * 128}, "the name of a group must be 1 to 255 bytes"),
        ({"group": "\udc80"}, "the name of a group must be"),
        ({"group": "/mail"}, "the name of a group has no empty part"),
        ({"queue": "e mail"}, "queue must be a text of 1 to 255 bytes without spaces"),
        ({"max_retries": -1}, "max_retries must be an int of at least 0, got -1"),
        ({"max_retries": 1.5}, "max_retries must be an int of at least 0, got 1.5"),
        ({"timeout": 0}, "timeout must be more than 0 seconds; None is no timeout"),
        ({"timeout": -1}, "timeout must be 0 to"),
        ({"backoff": 60}, r"backoff must be Exponential\(…\), Fixed\(…\), Sequence\(\[…\]\) or a function"),
        ({"backoff": Fixed}, "backoff must be Exponential"),
        ({"priority": "high"}, "priority must be an int, got 'high'"),
        ({"ordered_by": "topic"}, "ordered_by must be 'key' or None, got 'topic'"),
        ({"factory": dict}, "factory= makes the object of a class, and this is none"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidHandler, match=message):
        handler_of(take_model, **options)


def test_a_function_without_a_name_needs_a_group() -> None:
    with pytest.raises(InvalidHandler, match=r"'<lambda>': it has no name of its own; give it one with group="):
        handler_of(lambda event: None)
    assert handler_of(lambda event: None, group="named").group == "named"


class WithoutTopic(Event): ...


@pytest.mark.parametrize(
    ("patterns", "error", "message"),
    [
        ((), InvalidEvent, "give at least one pattern or Event class to handle"),
        (("user.",), InvalidPattern, "segment 2 is empty"),
        ((WithoutTopic,), InvalidEvent, "WithoutTopic has no topic"),
        ((dict,), InvalidEvent, "expected a pattern or an Event class, got the class dict"),
        ((take_model,), InvalidEvent, "got the function take_model; give the decorator what to wait for"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused(
    patterns: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        HandlerGroup().handler(*patterns)
