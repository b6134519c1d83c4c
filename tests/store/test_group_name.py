"""The names that groups may have."""

from __future__ import annotations

import pytest

from eventbus_fastapi.errors import InvalidGroup
from eventbus_fastapi.store.group_name import check_group_name


@pytest.mark.parametrize(
    "name", ["billing", "shop.send_welcome", "shop/mail", "größe", "a%2Fb", "retries", "?#&", "x" * 255]
)
def test_a_name_may_have_any_visible_character(name: str) -> None:
    assert check_group_name(name) == name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "1 to 255 bytes"),
        ("a b", "without spaces"),
        ("a\n", r"'a\\n'"),
        ("é" * 128, "255 bytes"),
        ("\ud800", "control characters"),
        ("/a", "no empty part"),
        ("a//b", "no empty part"),
        ("a/../b", "between slashes"),
        ("..", "between slashes"),
        ("a/retries", "does not end with /retries"),
        (7, "must be str, got int"),
    ],
)
def test_a_name_that_could_not_be_a_path_or_a_word_is_refused(name: object, words: str) -> None:
    with pytest.raises(InvalidGroup, match=words):
        check_group_name(name)
