"""How a handler's code is called with an event: looked at once, when the handler is registered.

The type of the first parameter decides what it gets:

| annotation | value |
|---|---|
| `Message` | the event as it is in the log |
| none, or `Any` | the payload decoded by its content type: JSON's values, str or bytes |
| a Pydantic model, dataclass, TypedDict, or any type that Pydantic validates | the payload as that |

The other parameters are provided as `dependencies` says.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

from pydantic import TypeAdapter

from eventbus_fastapi.errors import InvalidHandler, InvalidPayload, UndecodablePayload
from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.dependencies import Overrides, Plan, Source, depends_of, make_plan, source_of
from eventbus_fastapi.pipeline.signature import BY_POSITION, VARIADIC, kind_of, parameters_of

Factory = Callable[[], Any]
"""Makes a handler's object: returns it, or an awaitable of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A function, or the `handle` of a class, that is called with events."""

    name: str
    """The handler's, for errors."""
    call: Callable[..., Any]
    """The function; of a class, its `handle`, which is called on the object that `factory` makes."""
    factory: Factory | None
    """None: `call` is a function."""
    payload: Any
    """The first parameter's type."""
    parameters: tuple[Parameter, ...]
    """The others."""
    plan: Plan
    is_async: bool

    def decode(self, message: Message) -> Any:
        """Return an event as the handler takes it.

        Raises:
            UndecodablePayload: its payload is not of that type.
        """
        if self.payload is Message:
            return message
        try:
            return message.payload if self.payload is Any else message.decode(self.payload)
        except InvalidPayload as exc:
            # Without its cause: Pydantic's error shows the payload, which may be private.
            raise UndecodablePayload(self.name, str(exc)) from None

    def plan_with(self, overrides: Overrides) -> Plan:
        """Return the plan with other dependencies in the place of some.

        Raises:
            InvalidHandler: one of them cannot be provided.
        """
        return make_plan(self.name, self.parameters, overrides)


def make_target(name: str, handler: Callable[..., Any], factory: Factory | None = None) -> Target:
    """Look at a handler's code.

    Raises:
        InvalidHandler: it cannot be called with an event.
    """
    call, factory, parameters = _code_of(name, handler, factory)
    if not parameters or parameters[0].kind not in BY_POSITION:
        raise InvalidHandler(name, "it takes no event; its first parameter must be one that is passed by position")
    kind = kind_of(call)
    if kind in ("generator", "async generator"):
        raise InvalidHandler(name, "it must not yield; expected a function that returns None or an outcome")
    first, *others = parameters
    target = Target(
        name, call, factory, _payload_of(name, first), tuple(others), make_plan(name, others), kind == "async"
    )
    if not target.is_async and any(source_of(each.annotation) is Source.SESSION for each in others):
        raise InvalidHandler(
            name, "it asks for the bus's transaction, an async session, so it must be an async function"
        )
    return target


def _code_of(
    name: str, handler: Callable[..., Any], factory: Factory | None
) -> tuple[Callable[..., Any], Factory | None, list[Parameter]]:
    """Return what is called, what makes its object (None: it needs none), and the parameters."""
    if not inspect.isclass(handler):
        if factory is not None:
            raise InvalidHandler(name, "factory= makes the object of a class, and this is none")
        if not callable(handler):
            raise InvalidHandler(name, "expected a function, or a class with a method handle")
        return handler, None, parameters_of(handler, name)
    handle = getattr(handler, "handle", None)
    if not callable(handle):
        raise InvalidHandler(name, f"the class {handler.__name__} has no method handle(self, event, …)")
    if factory is None:
        _check_made_plainly(name, handler)
    parameters = parameters_of(handle, name)
    is_bound = isinstance(inspect.getattr_static(handler, "handle"), staticmethod | classmethod)
    return handle, factory or handler, parameters if is_bound else parameters[1:]


def _check_made_plainly(name: str, handler: type) -> None:
    required = [
        each.name
        for each in parameters_of(handler, name)
        if each.default is Parameter.empty and each.kind not in VARIADIC
    ]
    if required:
        raise InvalidHandler(
            name,
            f"the class {handler.__name__} is made without arguments, and needs {', '.join(required)};"
            " give a factory= that makes the object, once per worker",
        )


def _payload_of(name: str, first: Parameter) -> Any:
    """Return the type of the first parameter."""
    if first.annotation is Parameter.empty:
        return Any
    source = source_of(first.annotation)
    if source is Source.MESSAGE:
        return Message
    if source is not None or depends_of(first) is not None:
        raise InvalidHandler(name, f"the first parameter takes the event, and {first.name} is provided otherwise")
    if first.annotation is Any:
        return Any
    try:
        TypeAdapter(first.annotation)
    except Exception as exc:
        reason = f"the first parameter takes the event, and Pydantic cannot validate {first.name}: {exc}"
        raise InvalidHandler(name, reason) from exc
    return first.annotation
