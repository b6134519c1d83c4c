"""The principal: who asks, and what they may do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Self

from eventbus_fastapi.auth.containment import covers
from eventbus_fastapi.errors import Forbidden, InvalidPattern, SettingsError, quote
from eventbus_fastapi.topics import check_pattern, matches

MAX_NAME = 255
"""Longest name of a principal, characters."""


@dataclass(frozen=True, init=False)
class Principal:
    """Who asks, and what they may do. What is not granted is refused.

        Principal("shop", publish=["shop.#"], subscribe=["shop.#", "user.*"], groups=["shop.*"])

    Raises:
        SettingsError: something of it cannot be used; the message says what.
    """

    name: str
    """Names it in logs and limits: 1 to 255 printable characters. It is no secret."""
    publish: tuple[str, ...]
    """Patterns of the topics that it may publish to. Defaults to none."""
    subscribe: tuple[str, ...]
    """Patterns of the topics that it may read, live and from the log. A pattern that it subscribes to must be contained
    in one of them. Defaults to none."""
    groups: tuple[str, ...]
    """Names of the groups that it may join, or patterns of names, whose segments the dots separate: `shop.*`. What the
    group reads must be granted by `subscribe` as well. Defaults to none."""
    is_admin: bool
    """Whether it may do everything: publish and read all, join any group, and look after groups, queues, dead letters
    and the rest. Defaults to False."""
    expires_at: datetime | None
    """When all this ends; aware. None: never. Defaults to None."""

    def __init__(
        self,
        name: str,
        *,
        publish: Iterable[str] = (),
        subscribe: Iterable[str] = (),
        groups: Iterable[str] = (),
        is_admin: bool = False,
        expires_at: datetime | None = None,
    ) -> None:
        values = {
            "name": _checked_name(name),
            "publish": _granted("publish", publish, check_pattern),
            "subscribe": _granted("subscribe", subscribe, check_pattern),
            "groups": _granted("groups", groups, _checked_group),
            "is_admin": _checked_flag(is_admin),
            "expires_at": _checked_end(expires_at),
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)

    # --- may it? ---

    def may_publish(self, topic: str) -> bool:
        """Say whether it may publish to a (valid) topic."""
        return self.is_admin or _is_matched(self.publish, topic)

    def may_read(self, topic: str) -> bool:
        """Say whether it may see events of a (valid) topic."""
        return self.is_admin or _is_matched(self.subscribe, topic)

    def may_subscribe(self, pattern: str) -> bool:
        """Say whether it may read everything that a (valid) pattern matches."""
        return self.is_admin or covers(self.subscribe, pattern)

    def may_join(self, group: str) -> bool:
        """Say whether it may be a member of a group of this name."""
        return self.is_admin or _is_matched(self.groups, group)

    @property
    def may_read_all(self) -> bool:
        """Whether no event is kept from it."""
        return self.may_subscribe("#")

    @property
    def readable(self) -> tuple[str, ...]:
        """Patterns of all that it may read.

        Raises:
            Forbidden: there are none.
        """
        if self.may_read_all:
            return ("#",)
        if not self.subscribe:
            raise Forbidden(f"{quote(self.name)} may not read any topic")
        return self.subscribe

    # --- or else ---

    def require_publish(self, topic: str) -> None:
        """Raise Forbidden unless it may publish to a topic."""
        if not self.may_publish(topic):
            raise Forbidden(f"{quote(self.name)} may not publish to {quote(topic)}")

    def require_subscribe(self, *patterns: str) -> None:
        """Raise Forbidden unless it may read everything that each pattern matches."""
        for pattern in patterns:
            if not self.may_subscribe(pattern):
                reason = "it matches topics beyond what is granted"
                raise Forbidden(f"{quote(self.name)} may not read {quote(pattern)}: {reason}")

    def require_join(self, group: str) -> None:
        """Raise Forbidden unless it may be a member of a group."""
        if not self.may_join(group):
            raise Forbidden(f"{quote(self.name)} may not join group {quote(group)}")

    def require_admin(self) -> None:
        """Raise Forbidden unless it may look after the bus."""
        if not self.is_admin:
            raise Forbidden(f"{quote(self.name)} may not do this: it is for admins")

    # --- its end ---

    def until(self, end: datetime | None) -> Self:
        """Return the same principal with another end."""
        return replace(self, expires_at=end)

    def expires_in(self) -> float | None:
        """Return the seconds until it ends, by this machine's clock; 0: it has. None: it never does."""
        if self.expires_at is None:
            return None
        return max((self.expires_at - datetime.now(UTC)).total_seconds(), 0.0)

    @property
    def has_expired(self) -> bool:
        return self.expires_in() == 0


def _granted(field: str, given: object, check: Callable[[object], str]) -> tuple[str, ...]:
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise SettingsError(f"{field}: expected a list of patterns, got {quote(given)}")
    try:
        return tuple(dict.fromkeys(check(each) for each in given))
    except InvalidPattern as exc:
        raise SettingsError(f"{field}: {exc}") from exc


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name) <= MAX_NAME:
        raise SettingsError(f"name: expected 1 to {MAX_NAME} printable characters, got {quote(name)}")
    return name


def _checked_flag(is_admin: object) -> bool:
    if not isinstance(is_admin, bool):
        raise SettingsError(f"is_admin: expected true or false, got {quote(is_admin)}")
    return is_admin


def _checked_end(expires_at: object) -> datetime | None:
    if expires_at is not None and (not isinstance(expires_at, datetime) or expires_at.tzinfo is None):
        raise SettingsError(f"expires_at: expected a time with its zone, got {quote(expires_at)}")
    return expires_at


def _checked_group(name: object) -> str:
    if not isinstance(name, str) or not name or " " in name or not name.isprintable():
        raise SettingsError(f"groups: expected names of groups or patterns of names, got {quote(name)}")
    return name


@lru_cache(maxsize=16_384)
def _is_matched(patterns: tuple[str, ...], name: str) -> bool:
    return any(matches(pattern, name) for pattern in patterns)


EVERYONE = Principal("everyone", is_admin=True)
"""Who asks where nobody is asked who they are: what guards the bus then is the app around it, or its address."""
