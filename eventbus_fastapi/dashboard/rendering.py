"""The templates, and the filters that they write things with. Needs the extra `dashboard`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eventbus_fastapi.dashboard.shown import beginning_of, visible
from eventbus_fastapi.server.group_objects import time_text
from eventbus_fastapi.version import VERSION

STEPS = ((86_400, "d"), (3_600, "h"), (60, "min"))


@cache
def environment() -> Environment:
    """Return the one environment of the templates: everything that they write is escaped."""
    made = Environment(
        autoescape=True,
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        visible=visible, number=number, decimal=decimal, size=size, duration=duration, time=time, iso=time_text
    )
    made.globals.update(beginning_of=beginning_of, version=VERSION)
    return made


def link(path: str, /, **query: Any) -> str:
    """Return a path with a query; what is None, or empty, is left out."""
    given = {name: value for name, value in query.items() if value not in (None, "", [], ())}
    return f"{path}?{urlencode(given, doseq=True)}" if given else path


def number(value: float) -> str:
    return f"{value:,.0f}"


def decimal(value: float) -> str:
    """Return a rate or a share: as many digits as it takes to tell two of them apart."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.1f}"


def size(value: int) -> str:
    """Return a number of bytes."""
    if value < 1_000:
        return f"{value} B"
    for step, unit in ((1_000, "kB"), (1_000_000, "MB"), (1_000_000_000, "GB")):
        if value < step * 1_000:
            return f"{value / step:.1f} {unit}"
    return f"{value / 1e12:.1f} TB"


def duration(seconds: float) -> str:
    """Return a number of seconds in its largest unit."""
    for step, unit in STEPS:
        if seconds >= step:
            return f"{seconds / step:.0f} {unit}"
    if seconds >= 1:
        return f"{seconds:.0f} s"
    return f"{seconds * 1_000:.0f} ms"


def time(micros: int | None) -> Markup:
    """Return a time, unix microseconds, to the second; all of it is in the element's attributes."""
    if micros is None:
        return Markup("–")
    exact = time_text(micros)
    shown = exact[:19].replace("T", " ")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(exact, exact, shown)
