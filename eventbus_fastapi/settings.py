"""The settings of a bus, from keyword arguments or from the environment (`EVENTBUS_*`).

Durations are seconds, sizes are bytes. An environment variable with the prefix that names no setting is an error that
suggests the right name: a typo must not silently become a default.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as UnreadableSetting

from eventbus_fastapi.errors import SettingsError, quote

Overflow = Literal["catch_up", "disconnect", "drop_oldest"]
"""What happens to a live subscription that falls more than `buffer` events behind.

- `catch_up`: it leaves the live buffer and reads the log at its own pace; only a send that stalls ends it.
- `disconnect`: it ends at once (`SlowConsumer`, close code 4100) and may resume after its last seq.
- `drop_oldest`: it goes on with the newest `buffer` events and is told what it missed (`gap`).
"""

ArchiveMode = Literal["all", "failed", "none"]
"""Which endings of a group's events go to the archive: all, those with a failed attempt or a discard, none."""

PREFIX = "EVENTBUS_"
TEST_PREFIX = "EVENTBUS_TEST_"

MOST_WORKERS = 1_000
"""Most events that a queue handles at the same time in one process."""
LARGEST_CLAIM = 1_000
"""Most events that one claim takes."""
SHORTEST_POLL, LONGEST_POLL = 0.05, 3_600.0
"""Seconds between two looks at the groups of a queue."""


class QueueSettings(BaseModel):
    """What a deployment says about a queue; None: as the program says."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    workers: int | None = Field(None, ge=1, le=MOST_WORKERS)
    """Events that each process handles at the same time."""
    batch_size: int | None = Field(None, ge=1, le=LARGEST_CLAIM)
    """Events that one claim takes at most."""
    poll_interval: float | None = Field(None, ge=SHORTEST_POLL, le=LONGEST_POLL)
    """Seconds between two looks for what no bell tells of."""
    archive: ArchiveMode | None = None
    """Which endings of its events are kept in the archive."""


class Settings(BaseSettings):
    """Every setting, with its default. `Settings()` reads the environment."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, allow_inf_nan=False)

    # --- database ---
    database_url: str = "sqlite+aiosqlite:///eventbus.db"
    """SQLAlchemy URL with an async driver: `sqlite+aiosqlite`, `postgresql+asyncpg`, `postgresql+psycopg`,
    `mysql+asyncmy` (`mariadb+asyncmy` too). Defaults to the file eventbus.db in the working directory."""
    table_prefix: str = Field("bus_", pattern=r"^[a-z_][a-z0-9_]{0,29}$")
    """Prefix of all table names. Defaults to `bus_`."""
    db_schema: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")
    """PostgreSQL schema of the tables; None: the connection's search path. Defaults to None."""
    sqlite_synchronous: Literal["FULL", "NORMAL"] = "FULL"
    """FULL: an answered publish survives a power failure. NORMAL: survives a crash of the process only. Defaults to
    FULL."""
    busy_timeout: float = Field(5.0, gt=0)
    """Seconds to wait for SQLite's write lock. Defaults to 5."""
    statement_timeout: float = Field(10.0, gt=0)
    """Seconds after which a database operation of the bus is given up as unavailable. Defaults to 10."""
    pool_size: int = Field(5, ge=3)
    """Most pooled connections per node; one more is held by LISTEN on PostgreSQL. Defaults to 5."""

    # --- wake-up ---
    poll_interval: float = Field(0.2, gt=0, le=60)
    """Longest time an idle node waits before it looks for commits it was not told of. Defaults to 0.2."""
    poll_only: bool = False
    """PostgreSQL without LISTEN/NOTIFY, for transaction poolers. Defaults to False."""

    # --- limits at the door ---
    max_payload: int = Field(262_144, ge=1, le=16_000_000)
    """Largest encoded payload, bytes. Defaults to 256 KiB."""
    max_batch: int = Field(1_000, ge=1, le=10_000)
    """Most events in one publish over HTTP or WebSocket. Defaults to 1,000."""
    max_body: int = Field(1_048_576, ge=1)
    """Largest HTTP request body, bytes. Defaults to 1 MiB."""
    max_frame: int = Field(1_048_576, ge=1_024)
    """Largest WebSocket frame accepted, bytes. Defaults to 1 MiB."""
    max_depth: int = Field(32, ge=1, le=100)
    """Deepest nesting of a JSON payload. Defaults to 32."""
    max_subscriptions: int = Field(100, ge=1)
    """Most subscriptions of one connection. Defaults to 100."""

    # --- reading ---
    buffer: int = Field(5_000, ge=1)
    """Events that a live subscription may fall behind before its overflow policy applies. Defaults to 5,000."""
    tail_bytes: int = Field(8_388_608, ge=65_536)
    """Memory for the newest events, shared by all live subscriptions of a node, bytes. A subscription that needs
    older ones has overflowed. Defaults to 8 MiB."""
    overflow: Overflow = "catch_up"
    """Overflow policy of subscriptions that name none. Defaults to catch_up."""
    page_size: int = Field(1_000, ge=1, le=10_000)
    """Events read from the log at once; fewer if they are large. Defaults to 1,000."""
    auto_ack: bool = False
    """Mark an event processed as soon as it was sent to a WebSocket subscription. Defaults to False."""

    # --- groups ---
    lease: float = Field(30.0, ge=1)
    """Seconds that a node may hold deliveries of a group without a word before others may take them; it renews them
    meanwhile. Defaults to 30."""
    worker_grace: float = Field(30.0, ge=0)
    """Seconds that running handlers have to end when the bus stops. Defaults to 30."""
    queues: dict[str, QueueSettings] = {}
    """Queues by name, each with some of `workers`, `batch_size`, `poll_interval` and `archive`: they replace what the
    program says. In the environment a JSON object. Defaults to {}."""

    # --- connections ---
    heartbeat: float = Field(15.0, gt=0)
    """Seconds between heartbeats on an idle `eventbus.v1` connection. Defaults to 15."""
    send_timeout: float = Field(10.0, gt=0)
    """Seconds that one send to a client may stall before the connection is closed as slow (4100). Defaults to 10."""
    close_timeout: float = Field(60.0, gt=0)
    """Seconds that a closing connection waits for a client that does not read, so that it learns why. Defaults to
    60."""

    # --- retention ---
    retention_age: float | None = Field(None, gt=0)
    """Seconds after which events are removed; None: never. Defaults to None."""
    retention_count: int | None = Field(None, ge=1)
    """Most events kept; None: no limit. Defaults to None."""
    retention_group_limit: float | None = Field(None, gt=0)
    """Seconds that an event is kept at most for a group that has not read it; the group then counts it as lost. None:
    for as long as a group needs it. Defaults to None."""
    archive_age: float | None = Field(2_592_000.0, gt=0)
    """Seconds after which endings leave the archive of their group, 30 days unless given; None: never. Defaults to
    2,592,000."""
    dead_letter_age: float | None = Field(None, gt=0)
    """Seconds after which dead letters are forgotten; None: never. Defaults to None."""
    retention_interval: float = Field(60.0, gt=0)
    """Seconds between removals. Defaults to 60."""

    # --- standalone server ---
    host: str = "127.0.0.1"
    """Address that `eventbus serve` listens on. Defaults to 127.0.0.1."""
    port: int = Field(3000, ge=0, le=65_535)
    """Port that `eventbus serve` listens on. Defaults to 3000."""

    def __init__(self, **values: Any) -> None:
        refuse_unknown(os.environ, type(self).model_fields)
        try:
            super().__init__(**values)
        except ValidationError as exc:
            raise SettingsError(_explain(exc)) from exc
        except UnreadableSetting as exc:
            raise SettingsError(_explain_unreadable()) from exc

    def replace(self, **values: Any) -> Self:
        """Return a copy with some settings changed, validated like any other."""
        return type(self)(**{**self.model_dump(), **values})


def refuse_unknown(environment: Iterable[str], known: Iterable[str]) -> None:
    """Raise SettingsError for a variable with our prefix that names no setting."""
    names = {name.upper() for name in known}
    for variable in environment:
        if not variable.upper().startswith(PREFIX) or variable.upper().startswith(TEST_PREFIX):
            continue
        name = variable.upper().removeprefix(PREFIX)
        if name not in names:
            # Compared without the prefix, which all have in common: with it, anything is close to something.
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {PREFIX}{close[0]}?" if close else ""
            raise SettingsError(f"unknown setting {variable}{hint}")


def _explain(exc: ValidationError) -> str:
    """One line per setting: its name, what was expected, what came."""
    lines = []
    for error in exc.errors():
        setting, *inside = (str(part) for part in error["loc"])
        name = ".".join((setting, *inside))
        if error["type"] == "extra_forbidden":
            known = QueueSettings.model_fields if inside else Settings.model_fields
            close = difflib.get_close_matches(inside[-1] if inside else setting, known, n=1)
            lines.append(f"unknown setting {name}" + (f"; did you mean {close[0]}?" if close else ""))
        else:
            lines.append(f"setting {name} ({PREFIX}{setting.upper()}): {error['msg']}, got {quote(error['input'])}")
    return "; ".join(lines)


def _explain_unreadable() -> str:
    """A variable is no JSON, where JSON is read."""
    given = next((value for name, value in os.environ.items() if name.upper() == f"{PREFIX}QUEUES"), "")
    return f"setting queues ({PREFIX}QUEUES): expected a JSON object, got {quote(given)}"
