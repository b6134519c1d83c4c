"""Forms: how they are read, and how the dashboard knows that it has made the one that was sent.

Every form has a token in it. It is made from a secret that only this browser has, in a cookie, and from the name of who
looks; so a page of somebody else can neither read nor make it, and it is worthless to another user of the browser.
Besides, the browser says which page a form comes from (`Origin`, `Sec-Fetch-Site`), and where it does not, the form is
refused.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from fastapi import Request

from eventbus_fastapi.auth.origins import check_origin
from eventbus_fastapi.errors import Forbidden, InvalidRequest, OriginForbidden, UnsupportedMediaType, quote
from eventbus_fastapi.protocol import fields
from eventbus_fastapi.server.bodies import read_bounded
from eventbus_fastapi.settings import Settings

SECRET_COOKIE = "eventbus_dashboard_form"
TOKEN = "token"
"""Name of the field that has the token."""
MEDIA_TYPE = "application/x-www-form-urlencoded"
MOST_FIELDS = 1_000
"""Fields of one form: a page of dead letters, each with its box, has fewer."""

_INTEGER = re.compile(r"[0-9]{1,19}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")


class Fields:
    """What somebody has typed into a form, or into the address of a page. An empty field counts as absent.

    Every reader names the field in its error, and raises `InvalidRequest`.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)

    def refuse_unknown(self, known: Collection[str]) -> None:
        for name in self._values:
            if name not in known:
                raise InvalidRequest(f"unknown field {quote(name)}; expected {', '.join(sorted(known)) or 'none'}")

    def all(self, name: str) -> list[str]:
        """Return every value of a field that may be given more than once."""
        return [value for value in self._values.get(name, ()) if value]

    def text(self, name: str) -> str | None:
        """Return what was typed, without the white space around it."""
        value = self.raw(name)
        return None if value is None else value.strip() or None

    def raw(self, name: str) -> str | None:
        """Return what was typed, as it is; browsers end its lines with CR LF, which is LF here."""
        values = self._values.get(name, [])
        if len(values) > 1:
            raise InvalidRequest(f"field {name!r} was given {len(values)} times, expected once")
        return values[0].replace("\r\n", "\n") if values and values[0] else None

    def required(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise InvalidRequest(f"field {name!r} is empty")
        return value

    def integer(self, name: str, minimum: int = 0, maximum: int = fields.MAX_SEQ) -> int | None:
        value = self.text(name)
        if value is None:
            return None
        if not _INTEGER.fullmatch(value) or not minimum <= int(value) <= maximum:
            raise InvalidRequest(
                f"field {name!r}: expected an integer from {minimum:,} to {maximum:,}, got {quote(value)}"
            )
        return int(value)

    def integers(self, name: str, most: int) -> list[int]:
        """Return the seqs that a field gives, each once."""
        values = self.all(name)
        if not 1 <= len(values) <= most:
            raise InvalidRequest(f"field {name!r}: expected 1 to {most:,} of them, got {len(values):,}")
        for value in values:
            if not _INTEGER.fullmatch(value) or not 1 <= int(value) <= fields.MAX_SEQ:
                raise InvalidRequest(f"field {name!r}: expected integers ≥ 1, got {quote(value)}")
        return sorted({int(value) for value in values})

    def seconds(self, name: str) -> float | None:
        value = self.text(name)
        try:
            number = None if value is None else float(value)
        except ValueError:
            number = -1.0
        if number is not None and not 0 <= number <= fields.MAX_ID:
            raise InvalidRequest(f"field {name!r}: expected a number of seconds ≥ 0, got {quote(value)}")
        return number

    def time(self, name: str) -> datetime | None:
        """Return a time; one without an offset is UTC, as the fields of browsers for times have none."""
        value = self.text(name)
        try:
            time = None if value is None else datetime.fromisoformat(value)
            if time is None or time.tzinfo is not None:
                return None if time is None else time.astimezone(UTC)
            return time.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            expected = "a time, like 2026-01-31T12:00 (UTC)"
            raise InvalidRequest(f"field {name!r}: expected {expected}, got {quote(value)}") from None

    def choice(self, name: str, choices: Sequence[str]) -> str | None:
        value = self.text(name)
        if value is not None and value not in choices:
            expected = " or ".join(map(repr, choices))
            raise InvalidRequest(f"field {name!r}: expected {expected}, got {quote(value)}")
        return value

    def require_yes(self, name: str, what: str) -> None:
        """Raise InvalidRequest unless the box was checked that confirms something."""
        if self.text(name) != "yes":
            raise InvalidRequest(f"check the box first: {what}")

    def as_typed(self) -> Mapping[str, str]:
        """Return the last value of each field, to fill the form in again."""
        return {name: values[-1] for name, values in self._values.items()}


def new_secret() -> str:
    return secrets.token_urlsafe(32)


def secret_in(request: Request) -> str | None:
    """Return the secret of this browser; None: it has none that we have made."""
    value = request.cookies.get(SECRET_COOKIE, "")
    return value if _SECRET.fullmatch(value) else None


def token_of(secret: str, visitor: str) -> str:
    """Return the token of the forms that a visitor gets with this browser."""
    return hmac.new(secret.encode(), b"eventbus dashboard\0" + visitor.encode(), hashlib.sha256).hexdigest()


def check_source(request: Request, allowed_origins: Collection[str]) -> None:
    """Refuse what a page of another site, or nobody knows who, has the browser send.

    Raises:
        OriginForbidden: it is so.
    """
    site = request.headers.get("sec-fetch-site")
    if site not in (None, "same-origin"):
        raise OriginForbidden(f"the form was sent from a page of another site (Sec-Fetch-Site: {quote(site)})")
    if "origin" in request.headers:
        check_origin(request, allowed_origins)
    elif site is None:
        raise OriginForbidden("expected a header Origin or Sec-Fetch-Site, which browsers send with a form")


def check_token(form: Fields, secret: str | None, visitor: str) -> None:
    """Refuse a form that this browser did not get from us.

    Raises:
        Forbidden: it is one.
    """
    given = form.text(TOKEN) or ""
    if secret is None or not hmac.compare_digest(given.encode(), token_of(secret, visitor).encode()):
        raise Forbidden("this form is not valid any more: load the page again, and check what it shows")


async def read_form(request: Request, limits: Settings) -> Fields:
    """Return what a form says.

    Raises:
        UnsupportedMediaType, BodyTooLarge, BodyTooSlow, InvalidRequest: it cannot be read.
    """
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise UnsupportedMediaType(f"expected content type {MEDIA_TYPE}, got {quote(given)}")
    body = await read_bounded(request, limits)
    try:
        return Fields(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict"))
    except ValueError as exc:
        raise InvalidRequest(f"the form cannot be read: {exc}") from exc
