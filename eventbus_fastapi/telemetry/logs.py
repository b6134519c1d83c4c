"""Logs: one line a record, whatever is in it, as text or as JSON.

`eventbus serve` and `eventbus worker` write theirs so. An app that the bus is part of keeps its own logging, and may
take the formatters, or all of it: `logging.config.dictConfig(config("json"))`, or `uvicorn --log-config`.

Characters that would begin another line, or that a terminal would obey, are written as escapes, tracebacks on the same
line. Nothing logs a payload: the bus does not, and libraries that show what they carry when they debug are kept from
it. What follows a `?` in the path of a request is left out, as it may be a secret.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Literal

Format = Literal["text", "json"]

SHOW_WHAT_THEY_CARRY = (
    "aiosqlite",
    "asyncmy",
    "hpack",
    "httpcore",
    "httpx",
    "sqlalchemy.engine",
    "uvicorn",
    "websockets",
)
"""Loggers of libraries that, below INFO, show statements with their values, headers or frames."""
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line breaks of Unicode, what turns the direction of text around, and lone surrogates."""
_QUERY = re.compile(r"\?\S*")
_STANDARD = frozenset({*logging.makeLogRecord({}).__dict__, "asctime", "color_message", "message", "taskName"})
"""What every record has, and what uvicorn adds for terminals; all else was given as `extra`."""


class TextFormatter(logging.Formatter):
    """Writes `2026-01-01T12:00:00.000Z INFO eventbus_fastapi.pipeline.node: started on postgresql`."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [f"{_time_of(record)} {record.levelname} {record.name}: {_message_of(record)}", *_traces_of(record)]
        return escaped("\n".join(parts))


class JsonFormatter(logging.Formatter):
    """Writes an object of `time`, `level`, `logger`, `message`, and where there are such `exception`, `stack`, the ids
    of the trace and the span, and what was given as `extra`.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        line |= {"time": _time_of(record), "level": record.levelname, "logger": record.name}
        line["message"] = _message_of(record)
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = _traceback_of(record)
        if record.stack_info:
            line["stack"] = record.stack_info
        if (ids := _trace_ids()) is not None:
            line["trace_id"], line["span_id"] = ids
        return escaped(json.dumps(line, default=_shown, skipkeys=True))


def escaped(text: str) -> str:
    """Return text as one line that every terminal only prints."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def config(log_format: Format = "text", level: str = "info") -> dict[str, Any]:
    """Return a configuration of all loggers for `logging.config.dictConfig`, and for uvicorn's `log_config`.

    Args:
        log_format: `text` or `json`.
        level: the least important messages to log, as `info`.
    """
    formatter = JsonFormatter if log_format == "json" else TextFormatter
    least, quiet = level.upper(), quiet_level(level).upper()
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": f"{__name__}.{formatter.__name__}"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "line"}},
        "root": {"handlers": ["stderr"], "level": least},
        "loggers": {
            "eventbus_fastapi": {"level": least},
            **{name: {"level": quiet} for name in SHOW_WHAT_THEY_CARRY},
            "sqlalchemy.engine": {"level": "WARNING"},  # at INFO it shows statements, too
        },
    }


def quiet_level(level: str) -> str:
    """Return the level for loggers that show what they carry when they debug."""
    return "info" if level == "debug" else level


# --- parts of a line ---


def _time_of(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message_of(record: logging.LogRecord) -> str:
    try:
        if record.name.startswith("uvicorn") and isinstance(record.args, tuple):
            return str(record.msg) % tuple(_without_query(each) for each in record.args)
        return record.getMessage()
    except Exception as exc:  # noqa: BLE001 - of whoever logs: a line that says so is better than none
        return f"{record.msg!a} cannot be logged: {type(exc).__name__}"


def _without_query(argument: object) -> object:
    return _QUERY.sub("", argument) if isinstance(argument, str) and argument.startswith("/") else argument


def _traces_of(record: logging.LogRecord) -> list[str]:
    has_exception = record.exc_info and record.exc_info[0] is not None
    return [*([_traceback_of(record)] if has_exception else []), *([record.stack_info] if record.stack_info else [])]


def _traceback_of(record: logging.LogRecord) -> str:
    assert record.exc_info
    try:
        return logging.Formatter().formatException(record.exc_info)
    except Exception:  # noqa: BLE001 - it calls the program's own, as __str__
        return f"{record.exc_info[0]!a}, which cannot be shown"


def _shown(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - the same
        return f"<{type(value).__name__}>"


def _trace_ids() -> tuple[str, str] | None:
    if "opentelemetry.trace" not in sys.modules:  # then there is no span either
        return None
    from eventbus_fastapi.telemetry.spans import current_ids

    return current_ids()
