"""`eventbus migrate`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.command_line import Command, Done, url_in


def test_the_tables_are_created_checked_and_removed(eventbus: Command, database_url: str) -> None:
    def migrate(*arguments: str) -> Done:
        return eventbus("migrate", *arguments, "--database-url", database_url)

    assert migrate("current") == Done(0, "base (no tables)\n", "")
    outdated = migrate("check")
    assert (outdated.code, "eventbus migrate upgrade" in outdated.error) == (1, True)

    head = migrate("upgrade").out
    assert migrate("upgrade") == migrate("current") == Done(0, head, "")
    assert migrate("check") == Done(0, f"the tables are at revision {head.strip()}, as needed\n", "")
    assert eventbus("publish", "a", "1", "--database-url", database_url).code == 0

    assert migrate("downgrade", "base") == Done(0, "base (no tables)\n", "")


@pytest.mark.databases("sqlite")
def test_a_relative_revision_is_taken_as_the_page_has_it(eventbus: Command, database_url: str) -> None:
    def migrate(*arguments: str) -> Done:
        return eventbus("migrate", *arguments, "--database-url", database_url)

    assert migrate("upgrade", "+1") == Done(0, "0001\n", "")
    assert migrate("downgrade", "-1") == Done(0, "base (no tables)\n", "")
    assert (migrate("downgrade", "-1").code, migrate("current").out) == (1, "base (no tables)\n")

    head = migrate("upgrade").out
    assert (migrate("upgrade", "+1").code, migrate("current").out) == (1, head)


def test_looking_at_a_sqlite_file_that_is_not_there_does_not_make_it(eventbus: Command, tmp_path: Path) -> None:
    current = eventbus("migrate", "current", "--database-url", url_in(tmp_path))
    check = eventbus("migrate", "check", "--database-url", url_in(tmp_path))

    assert current == Done(0, "base (no tables)\n", "")
    assert (check.code, "eventbus migrate upgrade" in check.error) == (1, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dialect", ["sqlite+aiosqlite", "postgresql+asyncpg", "mysql+asyncmy"])
def test_the_sql_is_printed_without_a_database(eventbus: Command, dialect: str) -> None:
    database_url = f"{dialect}://nobody@127.0.0.1:1/nothing" if "sqlite" not in dialect else f"{dialect}://"

    up = eventbus("migrate", "upgrade", "--sql", "--database-url", database_url)
    down = eventbus("migrate", "downgrade", "base", "--sql", "--database-url", database_url)

    assert (up.code, up.err, down.code, down.err) == (0, "", 0, "")
    assert "CREATE TABLE bus_event" in up.out
    assert re.search("DROP TABLE (IF EXISTS )?bus_event", down.out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["upgrade", "nope", "--database-url", "sqlite+aiosqlite://"], ["revision", "'nope'", "+1"]),
        (["upgrade", "-1", "--database-url", "sqlite+aiosqlite://"], ["revision", "'-1'", "+1"]),
        (["downgrade", "+1", "--database-url", "sqlite+aiosqlite://"], ["revision", "'+1'", "-1"]),
        (["upgrade", "-1", "--sql", "--database-url", "sqlite+aiosqlite://"], ["no revision -1 from base"]),
        (["upgrade", "--sql", "--database-url", "nope"], ["database URL cannot be read"]),
        (["upgrade", "--sql", "--database-url", "nope://"], ["'nope'", "sqlite, postgresql"]),
        (["upgrade", "--database-url", "nope://"], ["async driver", "nope"]),
        (
            ["upgrade", "--database-url", "postgresql+asyncpg://app:top@secret:5x@h/app"],
            ["database URL cannot be read"],
        ),
        (["check", "--database-url", "postgresql+asyncpg://nobody:secret@127.0.0.1:1/x"], ["not available"]),
    ],
)
def test_what_cannot_be_migrated_is_one_line(eventbus: Command, arguments: list[str], words: list[str]) -> None:
    done = eventbus("migrate", *arguments)

    assert done.code == 1
    assert "secret" not in done.error
    for word in words:
        assert word in done.error
