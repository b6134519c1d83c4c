"""What handlers get beside the event: FastAPI's `Depends`, and what the bus itself provides.

An app's dependencies work in handlers as they are: sync (in a thread), async, with `yield` (ended after the handler, in
reverse order, with its error thrown in), classes, nested, each called once per attempt unless `use_cache=False`, and
replaced by what `app.dependency_overrides` says. A parameter of any of them may also be annotated as `Message`,
`Attempt`, `BusSession` or `Settings`. What would come from an HTTP request is refused when the handler is registered;
a parameter with a plain default keeps it.

Neither solver at hand does this for long. FastAPI's own (`get_dependant`, `solve_dependencies`) is private, wants a
Request with entries of its own in the scope, and broke those who call it in 0.106, 0.112.4, 0.121 and 0.140 (faststream
#1101, #1766, #2646, #2959). fast-depends has a `Depends` of its own and does not see FastAPI's, so that dependencies of
an app fail where they are nested (tried with 3.0.9; FastDepends #64). What is used here of FastAPI is public: the
fields of the `Depends` that apps write. Its `max_concurrency` is counted per worker, apart from that of requests.

Everything is looked at once: a `Plan` is a list of calls in order, each with the places its arguments come from.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from inspect import Parameter
from typing import Annotated, Any, TypeAlias, get_args, get_origin

from fastapi import params
from fastapi.security import SecurityScopes
from pydantic.fields import FieldInfo
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.background import BackgroundTasks
from starlette.datastructures import UploadFile
from starlette.requests import HTTPConnection
from starlette.responses import Response

from eventbus_fastapi.errors import InvalidHandler
from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.signature import VARIADIC, Kind, kind_of, name_of, parameters_of
from eventbus_fastapi.pipeline.threads import Threads
from eventbus_fastapi.settings import Settings

Overrides: TypeAlias = Mapping[Callable[..., Any], Callable[..., Any]]
"""A dependency → what is called in its place, as in `app.dependency_overrides`."""


class Source(Enum):
    """What the bus itself provides; the value is its place among the values of an attempt."""

    MESSAGE = 0
    ATTEMPT = 1
    SESSION = 2
    SETTINGS = 3


Attempt: TypeAlias = Annotated[int, Source.ATTEMPT]
"""Annotates a parameter for the number of this attempt, counted from 1."""

BusSession: TypeAlias = Annotated[AsyncSession, Source.SESSION]
"""Annotates a parameter for a session on the bus's own transaction: what is written with it and the ack are committed
together, or neither. The bus commits; the handler must not."""

_FROM_REQUEST = (HTTPConnection, Response, BackgroundTasks, SecurityScopes, UploadFile)


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a plan; its value takes the next place."""

    call: Callable[..., Any]
    """The dependency itself; of one with `yield` a function that makes its context manager."""
    kind: Kind
    arguments: tuple[tuple[str, int], ...]
    """Name → place of the value."""
    limit: tuple[params.Depends, int] | None
    """At most so many at the same time, of this very declaration; None: any number."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How the parameters of one handler get their values."""

    steps: tuple[Step, ...]
    arguments: tuple[tuple[str, int], ...]
    """Name of the handler's parameter → place of the value."""
    needs_exits: bool
    """Whether something has to be ended after the handler."""
    is_transactional: bool
    """Whether anything asks for the bus's transaction."""


def make_plan(owner: str, parameters: Sequence[Parameter], overrides: Overrides | None = None) -> Plan:
    """Return how parameters get their values.

    Raises:
        InvalidHandler: one cannot be provided; the error leads from the handler named `owner` to it.
    """
    planner = _Planner(owner, overrides or {})
    arguments = planner.arguments(parameters, ())
    steps = tuple(planner.steps)
    places = {place for taken in (arguments, *(step.arguments for step in steps)) for _, place in taken}
    return Plan(
        steps,
        arguments,
        any(step.kind in ("generator", "async generator") for step in steps),
        Source.SESSION.value in places,
    )


def source_of(annotation: Any) -> Source | None:
    """Return what of the bus an annotation asks for; None: nothing."""
    if annotation is Message:
        return Source.MESSAGE
    if annotation is Settings:
        return Source.SETTINGS
    if get_origin(annotation) is Annotated:
        for each in get_args(annotation)[1:]:
            if isinstance(each, Source):
                return each
        return source_of(get_args(annotation)[0])
    return None


def depends_of(parameter: Parameter) -> params.Depends | None:
    """Return the `Depends` of a parameter, in its annotation or as its default."""
    if isinstance(parameter.default, params.Depends):
        return parameter.default
    found = [each for each in _metadata(parameter) if isinstance(each, params.Depends)]
    return found[-1] if found else None


class _Planner:
    def __init__(self, owner: str, overrides: Overrides) -> None:
        self._owner = owner
        self._overrides = overrides
        self._places: dict[Callable[..., Any], int] = {}
        self._calling: list[Callable[..., Any]] = []
        self.steps: list[Step] = []

    def arguments(self, parameters: Sequence[Parameter], chain: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
        found = []
        for parameter in parameters:
            place = self._place_of(parameter, chain)
            if place is not None:
                found.append((parameter.name, place))
        return tuple(found)

    def _place_of(self, parameter: Parameter, chain: tuple[str, ...]) -> int | None:
        """Return where a parameter's value is; None: it keeps its default."""
        depends = depends_of(parameter)
        source = source_of(parameter.annotation)
        has_default = parameter.default is not Parameter.empty
        if depends is not None:
            place = self._place_of_dependency(parameter, depends, chain)
        elif source is not None:
            place = source.value
        elif _is_from_request(parameter):
            reason = (
                "it comes from an HTTP request, and a handler has none; take it from the event or its message"
                " (`message: Message`), or depend on something that needs no request"
            )
            raise InvalidHandler(self._owner, reason, chain=(*chain, _shown(parameter)))
        elif has_default or parameter.kind in VARIADIC:
            return None
        else:
            raise InvalidHandler(self._owner, _why_not_provided(parameter), chain=(*chain, _shown(parameter)))
        if parameter.kind is Parameter.POSITIONAL_ONLY:
            reason = "it must not be positional-only: it is passed by name"
            raise InvalidHandler(self._owner, reason, chain=(*chain, _shown(parameter)))
        return place

    def _place_of_dependency(self, parameter: Parameter, depends: params.Depends, chain: tuple[str, ...]) -> int:
        original = depends.dependency or _bare(parameter.annotation)
        chain = (*chain, f"{parameter.name}=Depends({name_of(original)})")
        if isinstance(depends, params.Security):
            reason = "it is a Security dependency, whose scopes are of an HTTP request, and a handler has none"
            raise InvalidHandler(self._owner, reason, chain=chain)
        if not callable(original):
            raise InvalidHandler(self._owner, "it depends on nothing that can be called", chain=chain)
        if depends.use_cache and original in self._places:
            return self._places[original]
        call = self._overrides.get(original, original)
        if call in self._calling:
            raise InvalidHandler(self._owner, "it depends on itself", chain=chain)
        self._calling.append(call)
        arguments = self.arguments(parameters_of(call, self._owner, chain), chain)
        self._calling.pop()
        kind = kind_of(call)
        limit: int | None = getattr(depends, "max_concurrency", None)  # newer versions of FastAPI have it
        self.steps.append(Step(_as_context(call, kind), kind, arguments, None if limit is None else (depends, limit)))
        place = len(Source) + len(self.steps) - 1
        self._places.setdefault(original, place)
        return place


def _as_context(call: Callable[..., Any], kind: Kind) -> Callable[..., Any]:
    if kind == "generator":
        return contextmanager(call)
    return asynccontextmanager(call) if kind == "async generator" else call


def _metadata(parameter: Parameter) -> tuple[Any, ...]:
    annotation = parameter.annotation
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _is_from_request(parameter: Parameter) -> bool:
    kind = _bare(parameter.annotation)
    return (
        (isinstance(kind, type) and issubclass(kind, _FROM_REQUEST))
        or isinstance(parameter.default, FieldInfo)
        or any(isinstance(each, params.Param | params.Body) for each in _metadata(parameter))
    )


def _shown(parameter: Parameter) -> str:
    kind = _bare(parameter.annotation)
    if kind is Parameter.empty:
        return parameter.name
    return f"{parameter.name}: {kind.__qualname__ if isinstance(kind, type) else kind}"


def _why_not_provided(parameter: Parameter) -> str:
    reason = "nothing provides it; give it Depends(…), a default, or one of Message, Attempt, BusSession, Settings"
    kind = _bare(parameter.annotation)
    if isinstance(kind, type) and issubclass(kind, AsyncSession):
        reason += " (the session on the bus's own transaction is a BusSession)"
    return reason


# --- per attempt ---------------------------------------------------------------------------------


class Solver:
    """Makes the values of plans. It owns the counts of what may be open at the same time."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._limits: dict[params.Depends, asyncio.Semaphore] = {}

    async def solve(self, plan: Plan, values: list[Any], exits: AsyncExitStack | None) -> None:
        """Append the value of each step to `values`, which holds those of `Source`.

        `exits` gets what has to be ended; it may be None if the plan needs none.
        """
        for step in plan.steps:
            arguments = {name: values[place] for name, place in step.arguments}
            if step.limit is None:
                values.append(await self._value(step, arguments, exits))
            else:
                values.append(await self._limited(step, arguments, exits, self._semaphore(*step.limit)))

    async def _value(self, step: Step, arguments: dict[str, Any], exits: AsyncExitStack | None) -> Any:
        if step.kind == "async":
            return await step.call(**arguments)
        if step.kind == "sync":
            return await self._threads.run(partial(step.call, **arguments))
        assert exits is not None
        manager = step.call(**arguments)
        return await exits.enter_async_context(
            manager if step.kind == "async generator" else _InThreads(manager, self._threads)
        )

    async def _limited(
        self, step: Step, arguments: dict[str, Any], exits: AsyncExitStack | None, semaphore: asyncio.Semaphore
    ) -> Any:
        if step.kind in ("async", "sync"):
            async with semaphore:
                return await self._value(step, arguments, exits)
        assert exits is not None
        await exits.enter_async_context(semaphore)  # given back after the end of what it counts
        return await self._value(step, arguments, exits)

    def _semaphore(self, depends: params.Depends, limit: int) -> asyncio.Semaphore:
        # No two declarations are equal, nor is a copy of one another one: FastAPI sees to both.
        return self._limits.setdefault(depends, asyncio.Semaphore(limit))


class _InThreads:
    """A sync context manager whose beginning and end run in threads.

    If the wait for its beginning is cancelled, its thread runs on; what it then opens is ended in the same thread, as
    nobody else will.
    """

    def __init__(self, manager: AbstractContextManager[Any], threads: Threads) -> None:
        self._manager = manager
        self._threads = threads
        self._lock = threading.Lock()
        self._has_begun = False
        self._is_abandoned = False

    async def __aenter__(self) -> Any:
        try:
            return await self._threads.run(self._begin)
        except asyncio.CancelledError as exc:
            with self._lock:
                self._is_abandoned = True
                has_begun = self._has_begun
            if has_begun:  # at the very moment of the cancellation
                await self.__aexit__(type(exc), exc, exc.__traceback__)
            raise

    async def __aexit__(self, *exc: Any) -> bool | None:
        return await self._threads.run_beyond(partial(self._manager.__exit__, *exc))

    def _begin(self) -> Any:
        value = self._manager.__enter__()
        with self._lock:
            if not self._is_abandoned:
                self._has_begun = True
                return value
        abandoned = asyncio.CancelledError()
        self._manager.__exit__(type(abandoned), abandoned, None)
        return None
