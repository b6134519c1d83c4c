"""Why an attempt failed, as it is stored: text of bounded length that every database can hold."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from eventbus_fastapi import codec

MAX_MESSAGE = 1_000
"""Longest message of an error, characters; the end is cut off."""
MAX_TRACEBACK = 4_000
"""Longest traceback, characters; the beginning is cut off, as the fault is at the end."""

_PLACE = re.compile(r'^ *File "([^"\n]*)", line (\d+), in (.*)$', re.MULTILINE)
_MAX_FRAMES = 50
"""Most frames of one exception: an endless recursion has a thousand."""
_MACHINERY = {
    str(Path(__file__).with_name(f"{name}.py"))
    for name in ("executor", "dependencies", "target", "threads", "timeouts")
}
"""Files whose frames say nothing about the fault."""


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """Why an attempt failed."""

    type: str
    """The exception's class, with its module; `Retry` if the handler asked for another attempt."""
    message: str
    traceback: str = ""
    """Empty where there is none to show."""
    time: int = 0
    """Unix microseconds."""
    node: str = ""
    """Where the attempt was made."""
    attempt: int = 1
    """Counted from 1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", _beginning(_plain(self.type), MAX_MESSAGE))
        object.__setattr__(self, "message", _beginning(_plain(self.message), MAX_MESSAGE))
        object.__setattr__(self, "traceback", _ending(_plain(self.traceback), MAX_TRACEBACK))

    @classmethod
    def of(cls, exc: BaseException, *, time: int, node: str, attempt: int) -> Self:
        """Return the record of an exception. Never raises, whatever the exception is."""
        kind = type(exc)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        return cls(name, message_of(exc), _traceback(exc), time=time, node=node, attempt=attempt)

    @property
    def where(self) -> str:
        """The place that it comes from, such as `shop/users.py:41 in send_welcome`; empty where there is none."""
        places = _PLACE.findall(self.traceback)
        return "{}:{} in {}".format(*places[-1]) if places else ""

    @property
    def summary(self) -> str:
        """Type and place, for a log: the message is the program's own, and may hold what is not for a log."""
        return f"{self.type} at {self.where}" if self.where else self.type

    def with_note(self, note: str) -> Self:
        """Return the record with a note at the end of its message."""
        message = _beginning(self.message, MAX_MESSAGE // 2)
        return replace(self, message=f"{message} ({note})" if message else note)

    def to_json(self) -> str:
        return codec.encode_json(self, what="error").decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return a record that was stored.

        Raises:
            InvalidPayload: it is none.
        """
        return codec.decode_as(text.encode(), codec.JSON, cls)


def message_of(exc: BaseException) -> str:
    """Return the text of an exception, whatever it is."""
    try:
        return str(exc)
    except Exception:  # noqa: BLE001 - a __str__ of the program's own
        return "<its message cannot be shown>"


def _traceback(exc: BaseException) -> str:
    """Return where an exception comes from, without the frames of the machinery that called the handler."""
    try:
        shown = traceback.TracebackException.from_exception(exc, limit=-_MAX_FRAMES, max_group_width=5)
        frames = _leave_out_machinery(shown)
        return "".join(shown.format()) if frames else ""
    except Exception:  # noqa: BLE001 - it calls the program's own, as __str__
        return ""


def _leave_out_machinery(shown: traceback.TracebackException) -> int:
    """Remove the frames that say nothing, also of causes and of the members of groups; return how many are left."""
    frames = 0
    rest: list[traceback.TracebackException | None] = [shown]
    while rest:
        each = rest.pop()
        if each is None:
            continue
        each.stack[:] = [frame for frame in each.stack if frame.filename not in _MACHINERY]
        frames += len(each.stack)
        rest += [*(each.exceptions or ()), each.__cause__, None if each.__suppress_context__ else each.__context__]
    return frames


def _plain(text: str) -> str:
    """Return text without what some databases cannot hold: lone surrogates and NUL."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _beginning(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _ending(text: str, limit: int) -> str:
    return text if len(text) <= limit else "…" + text[1 - limit :]
