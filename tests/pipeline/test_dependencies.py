"""What handlers get beside the event: FastAPI's own `Depends`, and what the bus provides."""

import asyncio
import contextlib
import contextvars
import functools
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import pytest
from fastapi import BackgroundTasks, Body, Depends, FastAPI, Header, Query, Request, Response, Security, WebSocket
from fastapi.security import OAuth2PasswordBearer, SecurityScopes
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import TypeAliasType

from eventbus_fastapi.errors import InvalidHandler
from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.dependencies import Attempt, BusSession
from eventbus_fastapi.pipeline.executor import Executor
from eventbus_fastapi.settings import Settings
from tests.pipeline.handling import ADA, UserCreated, call, handler_of, message_of

# --- an app, written without a thought of handlers ---


@dataclass
class Connection:
    url: str


def get_url() -> str:
    return "db://app"


async def get_connection(url: Annotated[str, Depends(get_url)]) -> AsyncIterator[Connection]:
    connection = Connection(url)
    NOTES.append("begin")
    try:
        yield connection
        NOTES.append("commit")
    except BaseException as exc:
        NOTES.append(f"rollback after {type(exc).__name__}")
        raise
    finally:
        NOTES.append("close")


class Users:
    def __init__(self, connection: Annotated[Connection, Depends(get_connection)], table: str = "users") -> None:
        self.place = f"{connection.url}/{table}"


NOTES: list[str] = []

UsersDep = Annotated[Users, Depends()]

app = FastAPI()


@app.get("/place")
async def read_place(users: UsersDep) -> str:
    return users.place


@pytest.fixture(autouse=True)
def notes() -> list[str]:
    NOTES.clear()
    return NOTES


# --- an app's dependencies ---


async def test_a_dependency_of_an_app_works_in_a_handler_as_in_a_route(notes: list[str]) -> None:
    places: list[str] = []

    async def handle(event: UserCreated, users: UsersDep) -> None:
        places.append(users.place)
        notes.append("handle")

    await call(handle)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        places.append((await client.get("/place")).json())
    assert places == ["db://app/users", "db://app/users"]
    assert notes == ["begin", "handle", "commit", "close", "begin", "commit", "close"]


async def test_what_an_app_overrides_in_tests_is_overridden_in_handlers(notes: list[str]) -> None:
    places: list[str] = []

    async def handle(event: UserCreated, users: UsersDep) -> None:
        places.append(users.place)

    def get_test_url(host: Annotated[str, Depends(lambda: "test")]) -> str:
        return f"db://{host}"

    handler = handler_of(handle)
    executor = Executor(Settings(), overrides=app.dependency_overrides)
    app.dependency_overrides[get_url] = get_test_url
    try:
        await executor.run(handler, message_of())
        app.dependency_overrides[get_connection] = lambda: Connection("db://none")
        await executor.run(handler, message_of())
    finally:
        app.dependency_overrides.clear()
    await executor.run(handler, message_of())
    executor.close()
    assert places == ["db://test/users", "db://none/users", "db://app/users"]


async def test_a_dependency_gets_the_error_of_the_handler(notes: list[str]) -> None:
    async def handle(event: UserCreated, users: UsersDep) -> None:
        raise LookupError("no such user")

    with pytest.raises(LookupError, match="no such user"):
        await call(handle)
    assert notes == ["begin", "rollback after LookupError", "close"]


async def conceal() -> AsyncIterator[None]:
    with contextlib.suppress(LookupError):
        yield


def conceal_in_a_thread() -> Iterator[None]:
    with contextlib.suppress(LookupError):
        yield


@pytest.mark.parametrize("dependency", [conceal, conceal_in_a_thread])
async def test_a_dependency_cannot_conceal_the_error_of_the_handler(dependency: Callable[..., Any]) -> None:
    async def handle(event: UserCreated, nothing: None = Depends(dependency)) -> None:
        raise LookupError("no such user")

    with pytest.raises(LookupError, match="no such user"):
        await call(handle)


async def test_a_dependency_may_put_another_error_in_its_place() -> None:
    async def translate() -> AsyncIterator[None]:
        try:
            yield
        except LookupError as exc:
            raise ConnectionError("the database is away") from exc

    async def handle(event: UserCreated, nothing: Annotated[None, Depends(translate)]) -> None:
        raise LookupError

    with pytest.raises(ConnectionError, match="the database is away"):
        await call(handle)


async def test_what_fails_after_the_handler_fails_the_attempt() -> None:
    async def commit() -> AsyncIterator[None]:
        yield
        raise ConnectionError("the commit failed")

    async def handle(event: UserCreated, nothing: Annotated[None, Depends(commit)]) -> None: ...

    with pytest.raises(ConnectionError, match="the commit failed"):
        await call(handle)


async def test_dependencies_end_in_reverse_order_also_if_a_later_one_fails(notes: list[str]) -> None:
    def outer() -> Iterator[str]:
        notes.append("outer")
        yield "outer"
        notes.append("never")

    async def inner(value: Annotated[str, Depends(outer)]) -> AsyncIterator[str]:
        try:
            yield value
        finally:
            notes.append("inner ends")

    async def fail(value: Annotated[str, Depends(inner)]) -> str:
        raise ConnectionError

    async def handle(event: UserCreated, value: Annotated[str, Depends(fail)]) -> None:
        notes.append("handled")

    with pytest.raises(ConnectionError):
        await call(handle)
    assert notes == ["outer", "inner ends"]


async def test_a_sync_dependency_runs_in_a_thread_with_the_context_of_the_handler() -> None:
    def where() -> tuple[bool, str]:
        return threading.current_thread() is threading.main_thread(), request_id.get()

    seen: list[tuple[bool, str]] = []

    async def handle(event: UserCreated, place: Annotated[tuple[bool, str], Depends(where)]) -> None:
        seen.append(place)

    request_id.set("r1")
    await call(handle)
    assert seen == [(False, "r1")]


request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")


class Named:
    async def __call__(self) -> str:
        return "an object"


def decorated(function: Callable[..., Awaitable[str]]) -> Callable[..., Awaitable[str]]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Awaitable[str]:
        return function(*args, **kwargs)

    return wrapper


@decorated
async def wrapped(url: Annotated[str, Depends(get_url)]) -> str:
    return f"wrapped {url}"


async def named(name: str) -> str:
    return name


@pytest.mark.parametrize(
    ("dependency", "value"),
    [
        (Named(), "an object"),
        (wrapped, "wrapped db://app"),
        (functools.partial(named, name="partial"), "partial"),
        (lambda: "lambda", "lambda"),
    ],
)
async def test_anything_that_can_be_called_is_a_dependency(dependency: Any, value: str) -> None:
    seen: list[str] = []

    async def handle(event: UserCreated, given: str = Depends(dependency)) -> None:
        seen.append(given)

    await call(handle)
    assert seen == [value]


async def test_a_dependency_is_called_once_per_attempt_unless_it_says_otherwise() -> None:
    numbers = iter(range(100))

    def number() -> int:
        return next(numbers)

    def twice(first: Annotated[int, Depends(number)]) -> int:
        return first * 10

    seen: list[tuple[int, ...]] = []

    async def handle(
        event: UserCreated,
        first: Annotated[int, Depends(number)],
        tenfold: Annotated[int, Depends(twice)],
        another: Annotated[int, Depends(number, use_cache=False)],
    ) -> None:
        seen.append((first, tenfold, another))

    await call(handle)
    await call(handle)
    assert seen == [(0, 0, 1), (2, 20, 3)]


async def test_no_more_than_max_concurrency_of_a_dependency_are_open() -> None:
    open_now: list[int] = [0]
    two_are_open, may_end = asyncio.Event(), asyncio.Event()

    async def connect() -> AsyncIterator[None]:
        open_now.append(open_now[-1] + 1)
        yield
        open_now.append(open_now[-1] - 1)

    async def handle(event: UserCreated, connected: Annotated[None, Depends(connect, max_concurrency=2)]) -> None:
        if open_now[-1] == 2:
            two_are_open.set()
        await may_end.wait()

    executor = Executor(Settings())
    handler = handler_of(handle)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(executor.run(handler, message_of()))
        await two_are_open.wait()
        may_end.set()
    executor.close()
    assert max(open_now) == 2
    assert len(open_now) == 11


# --- what the bus provides ---


async def test_the_bus_provides_the_message_the_attempt_and_its_settings() -> None:
    seen: list[object] = []

    async def handle(event: UserCreated, message: Message, attempt: Attempt, settings: Settings) -> None:
        seen.extend((message.payload, attempt, settings.max_batch))

    await call(handle, attempt=3, settings=Settings(max_batch=11))
    assert seen == [ADA, 3, 11]


MessageAlias = TypeAliasType("MessageAlias", Message)


async def test_an_alias_is_what_it_stands_for() -> None:
    seen: list[int] = []

    async def handle(event: UserCreated, message: MessageAlias) -> None:
        seen.append(message.seq)

    await call(handle)
    assert seen == [7]


async def test_a_dependency_may_ask_for_what_the_bus_provides() -> None:
    def get_idempotency_key(message: Message, attempt: Attempt) -> str:
        return f"{message.topic}/{message.seq}/{attempt}"

    seen: list[str] = []

    async def handle(event: UserCreated, key: Annotated[str, Depends(get_idempotency_key)]) -> None:
        seen.append(key)

    await call(handle, attempt=2)
    assert seen == ["user.created/7/2"]


async def test_a_handler_may_ask_for_a_session_on_the_transaction_of_the_bus() -> None:
    def get_users(session: BusSession) -> AsyncSession:
        return session

    seen: list[AsyncSession] = []

    async def handle(
        event: UserCreated, session: BusSession, users: Annotated[AsyncSession, Depends(get_users)]
    ) -> None:
        seen.extend((session, users))

    async with AsyncSession() as session:
        await call(handle, session=session)
        assert seen == [session, session]
    assert handler_of(handle).is_transactional


async def test_a_handler_asks_for_the_transaction_through_a_dependency_too() -> None:
    def get_users(session: BusSession) -> AsyncSession:
        return session

    async def handle(event: UserCreated, users: Annotated[AsyncSession, Depends(get_users)]) -> None: ...

    async def handle_without(event: UserCreated, attempt: Attempt) -> None: ...

    assert handler_of(handle).is_transactional
    assert not handler_of(handle_without).is_transactional


async def test_a_parameter_with_a_default_keeps_it() -> None:
    seen: list[str] = []

    async def handle(event: UserCreated, template: str = "welcome.txt", *rest: int, **more: int) -> None:
        seen.append(template)

    await call(handle)
    assert seen == ["welcome.txt"]


# --- what is refused when it is registered ---


def needs_request(request: Request) -> None: ...
def needs_websocket(websocket: WebSocket) -> None: ...
def needs_response(response: Response) -> None: ...
def needs_tasks(tasks: BackgroundTasks) -> None: ...
def needs_scopes(scopes: SecurityScopes) -> None: ...
def needs_header(token: Annotated[str, Header()]) -> None: ...
def needs_header_with_default(token: Annotated[str | None, Header()] = None) -> None: ...
def needs_query(page: int = Query(1)) -> None: ...
def needs_body(user: Annotated[dict[str, int], Body()]) -> None: ...


@pytest.mark.parametrize(
    ("dependency", "parameter"),
    [
        (needs_request, "request: Request"),
        (needs_websocket, "websocket: WebSocket"),
        (needs_response, "response: Response"),
        (needs_tasks, "tasks: BackgroundTasks"),
        (needs_scopes, "scopes: SecurityScopes"),
        (needs_header, "token: str"),
        (needs_header_with_default, "token: str | None"),
        (needs_query, "page: int"),
        (needs_body, "user: dict[str, int]"),
    ],
)
def test_what_comes_from_a_request_is_refused_with_the_way_that_leads_to_it(
    dependency: Callable[..., Any], parameter: str
) -> None:
    def get_user(needed: None = Depends(dependency)) -> None: ...

    async def handle(event: UserCreated, user: None = Depends(get_user)) -> None: ...

    with pytest.raises(InvalidHandler) as caught:
        handler_of(handle, group="shop.send")
    name = dependency.__name__
    assert caught.value.chain == ("user=Depends(get_user)", f"needed=Depends({name})", parameter)
    assert str(caught.value) == (
        f"handler 'shop.send': user=Depends(get_user) → needed=Depends({name}) → {parameter}: it comes from an HTTP"
        " request, and a handler has none; take it from the event or its message (`message: Message`), or depend on"
        " something that needs no request"
    )


def test_a_security_scheme_of_fastapi_is_refused_as_it_reads_a_request() -> None:
    async def handle(event: UserCreated, token: str = Depends(OAuth2PasswordBearer("token"))) -> None: ...

    with pytest.raises(InvalidHandler, match=r"token=Depends\(OAuth2PasswordBearer\) → request: .*an HTTP request"):
        handler_of(handle)


def plain() -> str:
    return ""


def without_a_source(url: str) -> None: ...
def with_a_session(session: AsyncSession) -> None: ...
def by_position(message: Message, /) -> None: ...
def with_an_unknown_type(message: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821
def with_security(user: Annotated[str, Security(plain, scopes=["admin"])]) -> None: ...
def on_itself(value: "Annotated[None, Depends(on_itself)]") -> None: ...


@pytest.mark.parametrize(
    ("dependency", "message"),
    [
        (without_a_source, "url: str: nothing provides it; give it Depends(…), a default, or one of Message, Attempt"),
        (with_a_session, "(the session on the bus's own transaction is a BusSession)"),
        (by_position, "message: Message: it must not be positional-only"),
        (with_an_unknown_type, "message: Missing: name 'Missing' is not defined; the annotation must be a name of the"),
        (with_security, "user=Depends(plain): it is a Security dependency"),
        (on_itself, "value=Depends(on_itself) → value=Depends(on_itself): it depends on itself"),
        (dict, "value=Depends(dict): the signature of dict cannot be read"),
    ],
)
def test_what_nothing_provides_is_refused(dependency: Callable[..., Any], message: str) -> None:
    async def handle(event: UserCreated, value: None = Depends(dependency)) -> None: ...

    with pytest.raises(InvalidHandler, match=re.escape(message)):
        handler_of(handle)


# --- when the wait is cancelled ---


async def test_what_a_thread_opens_after_the_wait_was_cancelled_is_ended(notes: list[str]) -> None:
    may_open, has_ended = threading.Event(), asyncio.Event()
    is_opening = asyncio.Event()
    loop = asyncio.get_running_loop()

    def connect() -> Iterator[None]:
        loop.call_soon_threadsafe(is_opening.set)
        may_open.wait()
        notes.append("open")
        try:
            yield
        finally:
            notes.append("close")
            loop.call_soon_threadsafe(has_ended.set)

    async def handle(event: UserCreated, connection: Annotated[None, Depends(connect)]) -> None:
        notes.append("handled")

    task = asyncio.create_task(call(handle))
    await is_opening.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_open.set()
    await has_ended.wait()
    assert notes == ["open", "close"]
