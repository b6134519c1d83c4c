"""The ways to say who one is, as those tell them who describe a bus. Nothing is decided by them."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Way(NamedTuple):
    """One of them."""

    kind: Literal["token", "header", "cookie", "ticket", "app"]
    """`token`: a bearer token, wherever one may come. `app`: a callable of the app's own; which of these it takes, or
    others, only the app knows."""
    name: str | None = None
    """Of the header, or what the token is (`JWT`)."""


def ways_of(authenticate: object) -> tuple[Way, ...]:
    """Return the ways that an `authenticate` takes: those that it tells of in its attribute `ways`."""
    ways: tuple[Way, ...] = getattr(authenticate, "ways", (Way("app"),))
    return ways
