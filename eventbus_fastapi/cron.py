"""Cron expressions in a time zone: which ticks they have. Values and rules; no clock is read here.

The rules are those of Debian's cron: five fields (minute, hour, day of month, month, day of week), names of months and
days, lists, ranges and steps; if neither the day of month nor the day of week begins with `*`, one of both is enough.
Where clocks change, an expression whose minute and hour do not begin with `*` has each of its times once: one that is
passed over comes when the clock has moved forward, and one that is there twice counts the first time. Any other goes by
the time that passes.

Times are unix microseconds, as everywhere.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from eventbus_fastapi.errors import InvalidRecurring, quote

MAX_EXPRESSION = 255
"""Longest expression, characters."""
MAX_TIMEZONE = 64
"""Longest name of a time zone, characters."""
ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
OF_THE_HOST = ("localtime", "posixrules")
"""Names that are another time zone on another host."""


class Cron:
    """The ticks of an expression in a time zone.

    Raises:
        InvalidRecurring: the expression is none, never comes true, or the time zone is unknown.
    """

    def __init__(self, expression: object, timezone: object = "UTC") -> None:
        self.expression = _check_expression(expression)
        self.timezone = _check_timezone(timezone)
        self._zone = _zone(self.timezone)
        self._fields = ALIASES.get(self.expression.lower(), self.expression)
        try:
            CronSim(self._fields, EPOCH)
        except CronSimError as exc:
            # A day that no month of the expression has is a bad day to the parser.
            raise InvalidRecurring(
                f"cron must be 5 fields (minute, hour, day of month, month, day of week) that come true on some day, "
                f"got {quote(self.expression)}: {str(exc)[:1].lower()}{str(exc)[1:]}"
            ) from None
        self.after(0)

    def after(self, time: int) -> int:
        """Return the first tick after a time.

        Raises:
            InvalidRecurring: there is none in the next fifty years.
        """
        try:
            # The parser starts anew from each time: where clocks go back it would pass over what the first pass had.
            for tick in CronSim(self._fields, (EPOCH + time * MICROSECOND).astimezone(self._zone)):
                found = (tick.astimezone(UTC) - EPOCH) // MICROSECOND
                if found > time:
                    return found
        except OverflowError:  # after the year 9999
            pass
        raise InvalidRecurring(f"cron {quote(self.expression)} never comes true")

    def last(self, tick: int, time: int) -> int:
        """Return the last tick up to a time, given one that is not after it.

        However many there are between both, a few are looked at.
        """
        latest = time
        while (following := self.after(tick)) <= time:
            tick = following
            middle = (tick + latest) // 2
            found = self.after(middle)
            if found <= time:
                tick = found
            else:
                latest = middle
        return tick


def time_text(time: int) -> str:
    """Return a time as RFC 3339 has it, UTC."""
    return (EPOCH + time * MICROSECOND).isoformat().replace("+00:00", "Z")


@lru_cache(maxsize=1_024)
def cron_of(expression: str, timezone: str) -> Cron:
    """Return the ticks of an expression, parsed once."""
    return Cron(expression, timezone)


def _check_expression(expression: object) -> str:
    if not isinstance(expression, str):
        raise InvalidRecurring(f"cron must be str, like '0 3 * * *', got {type(expression).__name__}")
    if len(expression) > MAX_EXPRESSION:
        raise InvalidRecurring(f"cron must be at most {MAX_EXPRESSION} characters, got {len(expression):,}")
    fields = expression.split()
    if len(fields) != 5 and not (len(fields) == 1 and fields[0].lower() in ALIASES):
        expected = f"5 fields, like '0 3 * * *', or one of {', '.join(ALIASES)}"
        raise InvalidRecurring(f"cron must be {expected}, got {quote(expression)}")
    if not expression.isascii():
        raise InvalidRecurring(f"cron must be ASCII, got {quote(expression)}")
    return " ".join(fields)


def _check_timezone(timezone: object) -> str:
    if not isinstance(timezone, str):
        raise InvalidRecurring(f"timezone must be a name, like 'Europe/Berlin', got {quote(timezone)}")
    return str.__str__(timezone)


def _zone(name: str) -> ZoneInfo:
    try:
        if 0 < len(name) <= MAX_TIMEZONE and name.isascii() and name not in OF_THE_HOST:
            return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        pass  # a name that is none, or that of a directory
    raise InvalidRecurring(
        f"timezone must be the name of one that this host knows, like 'Europe/Berlin', got {quote(name)} "
        "(a host without such data needs: pip install tzdata)"
    )
