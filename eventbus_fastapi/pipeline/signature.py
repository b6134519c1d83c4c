"""What the program's own callables are: their parameters, and how they are called. Looked at once, never per event."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias

from eventbus_fastapi.errors import InvalidHandler

Kind: TypeAlias = Literal["async", "sync", "async generator", "generator"]

BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def name_of(call: object) -> str:
    """Return a callable's name for people: a function's or class's own, without the functions that it is local to."""
    call = _impartial(call)
    name: str = getattr(call, "__qualname__", None) or type(call).__qualname__
    return name.rpartition("<locals>.")[2]


def kind_of(call: Callable[..., Any]) -> Kind:
    """Return how a callable is called; what is decorated with `functools.wraps` is what it wraps, as in FastAPI."""
    plain = _impartial(call)
    unwrapped = inspect.unwrap(plain)
    looks = [plain, unwrapped]
    if not inspect.isclass(unwrapped):
        looks += [inspect.unwrap(each.__call__) for each in (plain, unwrapped)]
    if any(map(inspect.isgeneratorfunction, looks)):
        return "generator"
    if any(map(inspect.isasyncgenfunction, looks)):
        return "async generator"
    return "async" if any(map(inspect.iscoroutinefunction, looks)) else "sync"


def parameters_of(call: Callable[..., Any], owner: str, chain: Sequence[str] = ()) -> list[inspect.Parameter]:
    """Return a callable's parameters with their annotations evaluated, aliases (`type X = …`) resolved.

    Raises:
        InvalidHandler: one cannot be evaluated; `owner` and `chain` say of what.
    """
    try:
        return [_resolved(each) for each in inspect.signature(call, eval_str=True).parameters.values()]
    except NameError:  # perhaps that of the return value only, imported under TYPE_CHECKING
        return [_evaluated(each, call, owner, chain) for each in inspect.signature(call).parameters.values()]
    except Exception as exc:
        raise InvalidHandler(owner, f"the signature of {name_of(call)} cannot be read: {exc}", chain=chain) from exc


def _evaluated(
    parameter: inspect.Parameter, call: Callable[..., Any], owner: str, chain: Sequence[str]
) -> inspect.Parameter:
    if not isinstance(parameter.annotation, str):
        return _resolved(parameter)
    module = sys.modules.get(getattr(_impartial(call), "__module__", None) or "")
    holder: Any = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        hints = typing.get_type_hints(holder, vars(module) if module else {}, include_extras=True)
    except Exception as exc:
        shown = (*chain, f"{parameter.name}: {parameter.annotation}")
        reason = f"{exc}; the annotation must be a name of the module, not imported under TYPE_CHECKING only nor local"
        raise InvalidHandler(owner, reason, chain=shown) from exc
    return _resolved(parameter.replace(annotation=hints[parameter.name]))


def _resolved(parameter: inspect.Parameter) -> inspect.Parameter:
    annotation = parameter.annotation
    while type(annotation).__name__ == "TypeAliasType":  # Python's own from 3.12 on, or that of typing_extensions
        annotation = annotation.__value__
    return parameter.replace(annotation=annotation)


def _impartial(call: Any) -> Any:
    while isinstance(call, partial):
        call = call.func
    return call
