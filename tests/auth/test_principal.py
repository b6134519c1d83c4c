"""Principals: what is granted is allowed, what is not is refused, and nothing is granted by a slip."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventbus_fastapi.auth import Principal
from eventbus_fastapi.errors import Forbidden, SettingsError

SHOP = Principal("shop", publish=["shop.#"], subscribe=["shop.*", "user.created"], groups=["shop.*", "audit"])


@pytest.mark.parametrize(
    ("topic", "expected"),
    [("shop.a.b", True), ("shop", True), ("Shop.a", False), ("shopping.a", False), ("user.a", False)],
)
def test_it_publishes_where_a_pattern_matches(topic: str, expected: bool) -> None:
    assert SHOP.may_publish(topic) is expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("shop.*", True), ("shop.a", True), ("user.created", True), ("user.*", False), ("shop.#", False), ("#", False)],
)
def test_it_subscribes_to_what_one_pattern_contains(pattern: str, expected: bool) -> None:
    assert SHOP.may_subscribe(pattern) is expected


@pytest.mark.parametrize(
    ("group", "expected"), [("shop.mail", True), ("audit", True), ("audit.x", False), ("shop", False), ("*", False)]
)
def test_it_joins_groups_by_name(group: str, expected: bool) -> None:
    assert SHOP.may_join(group) is expected


def test_nothing_is_granted_by_default() -> None:
    nobody = Principal("nobody")
    assert not nobody.may_publish("a")
    assert not nobody.may_read("a")
    assert not nobody.may_join("a")
    with pytest.raises(Forbidden):
        nobody.require_admin()
    with pytest.raises(Forbidden, match="may not read any topic"):
        _ = nobody.readable


def test_an_admin_may_do_everything() -> None:
    admin = Principal("admin", is_admin=True)
    assert admin.may_publish("a")
    assert admin.may_subscribe("#")
    assert admin.may_join("g")
    assert admin.readable == ("#",)
    admin.require_admin()


def test_it_ends_when_its_time_is_over() -> None:
    now = datetime.now(UTC)
    assert not Principal("a").has_expired
    assert Principal("a", expires_at=now - timedelta(seconds=1)).has_expired
    left = Principal("a", expires_at=now + timedelta(seconds=60)).expires_in()
    assert left is not None
    assert 0 < left <= 60


def test_equal_principals_are_equal_and_none_can_be_changed() -> None:
    assert SHOP.until(datetime(2999, 1, 1, tzinfo=UTC)).until(None) == SHOP
    with pytest.raises(AttributeError):
        SHOP.is_admin = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": ""}, "name: expected 1 to 255 printable"),
        ({"name": "a\nb"}, "name: expected"),
        ({"name": 5}, "name: expected"),
        ({"publish": "shop.#"}, "publish: expected a list"),
        ({"subscribe": None}, "subscribe: expected a list"),
        ({"publish": ["a..b"]}, "publish: invalid pattern"),
        ({"subscribe": [5]}, "subscribe: invalid pattern"),
        ({"groups": ["a b"]}, "groups: expected names"),
        ({"is_admin": "false"}, "is_admin: expected true or false"),
        ({"expires_at": datetime(2027, 1, 1)}, "expires_at: expected a time with its zone"),  # noqa: DTZ001
        ({"expires_at": 5}, "expires_at: expected"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Principal(**{"name": "a", **values})
