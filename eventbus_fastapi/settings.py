"""The settings of a bus, from keyword arguments or from the environment (`EVENTBUS_*`).

Durations are seconds, sizes are bytes. An environment variable with the prefix that names no setting is an error that
suggests the right name: a typo must not silently become a default.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as UnreadableSetting

from eventbus_fastapi.errors import InvalidPattern, SettingsError, quote
from eventbus_fastapi.topics import check_pattern

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
    """Seconds after which a database operation of the bus is given up as unavailable; while the process itself stands
    still, few are counted. Defaults to 10."""
    pool_size: int = Field(5, ge=3)
    """Most pooled connections per node; one more is held by LISTEN on PostgreSQL. Defaults to 5."""

    # --- wake-up ---
    poll_interval: float = Field(0.2, gt=0, le=60)
    """Longest time an idle node waits before it looks for commits it was not told of. Defaults to 0.2."""
    poll_only: bool = False
    """PostgreSQL without LISTEN/NOTIFY, for transaction poolers. Defaults to False."""

    # --- fan-out ---
    fanout: SecretStr | None = None
    """NATS server with JetStream over which nodes get live events from each other instead of from the database, as
    `nats://user:password@host:4222`; several of a cluster with commas between. See docs/fanout.md. None: each node
    reads the database. Defaults to None."""

    # --- limits at the door ---
    max_payload: int = Field(262_144, ge=1, le=16_000_000)
    """Largest encoded payload, bytes. Defaults to 256 KiB."""
    max_batch: int = Field(1_000, ge=1, le=10_000)
    """Most events in one publish over HTTP or WebSocket. Defaults to 1,000."""
    max_body: int = Field(1_048_576, ge=1)
    """Largest HTTP request body, bytes. Defaults to 1 MiB."""
    body_timeout: float = Field(10.0, gt=0)
    """Seconds that an HTTP request body may take to arrive. Defaults to 10."""
    max_frame: int = Field(1_048_576, ge=1_024)
    """Largest WebSocket frame accepted, bytes. Defaults to 1 MiB."""
    max_depth: int = Field(32, ge=1, le=100)
    """Deepest nesting of a JSON payload. Defaults to 32."""
    max_subscriptions: int = Field(100, ge=1)
    """Most subscriptions of one connection. Defaults to 100."""
    max_credit: int = Field(1_000_000, ge=1)
    """Most events that a subscription may have credit for. Defaults to 1,000,000."""
    max_queued: int = Field(1_048_576, ge=1_024)
    """Bytes of one connection that may wait, in each direction: for an answer, and for a client that does not read.
    Defaults to 1 MiB."""
    max_connections_per_address: int = Field(1_000, ge=1)
    """Most open connections that a node accepts from one address (of IPv6 the first 64 bits). Defaults to 1,000."""
    max_connections_per_principal: int = Field(1_000, ge=1)
    """Most open connections that a node accepts of one principal. Defaults to 1,000."""
    publish_rate: float = Field(1_000.0, gt=0)
    """Events per second that a principal may publish through a node over HTTP and WebSocket, on average; without
    authentication an address is a principal. Defaults to 1,000."""
    publish_burst: int = Field(2_000, ge=1)
    """Events that a principal may publish at once before that rate applies. Defaults to 2,000."""

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

    # --- CloudEvents ---
    cloudevents_source: str = Field("/eventbus", pattern=r"^[!-~]{1,255}$")
    """`source` of events as CloudEvents, but for those that came as CloudEvents of another one: a URI reference.
    Defaults to `/eventbus`."""

    # --- connections ---
    heartbeat: float = Field(15.0, gt=0)
    """Seconds between heartbeats on an idle `eventbus.v1` connection or stream. Defaults to 15."""
    send_timeout: float = Field(10.0, gt=0)
    """Seconds that one send to a client may stall before the connection is closed as slow (4100). Defaults to 10."""
    close_timeout: float = Field(60.0, gt=0)
    """Seconds that a closing connection waits for a client that does not read, so that it learns why. Defaults to
    60."""
    stream_lifetime: float = Field(300.0, gt=0)
    """Seconds after which a stream of `GET /events/stream` ends and its client comes back, give or take a fifth.
    Defaults to 300."""
    restart_spread: float = Field(5.0, ge=0)
    """Seconds over which the clients of a stopping node are told to come back. Defaults to 5."""

    # --- access ---
    allowed_origins: tuple[str, ...] = ()
    """Other origins than the bus's own whose web pages may use it, such as `https://app.example`; in the environment a
    JSON list. Pages of others are turned away. Defaults to ()."""
    tickets: bool = False
    """Give tickets (`POST /tickets`): each is good for one request within 30 seconds, as `?ticket=…`, at the same
    process. For clients that can send no header, as a browser's EventSource. Defaults to False."""
    hello_timeout: float = Field(5.0, gt=0)
    """Seconds that a WebSocket has to send its token in its first frame, if it said that it would. Defaults to 5."""

    recheck_interval: float = Field(30.0, gt=0)
    """Seconds between two times that `authenticate` is asked whether the client of an open connection may stay.
    Defaults to 30."""

    # --- dashboard ---
    dashboard: Literal["auto", "on", "off"] = "auto"
    """Whether the router has `/dashboard`; auto: where Jinja2 is installed (extra `dashboard`). It is for admins where
    `authenticate` is given, else for browsers on the same machine only. Defaults to auto."""

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

    # --- telemetry ---
    metrics: bool = False
    """Serve Prometheus metrics at `/metrics`, beside the other routes. Needs the extra `prometheus`. Defaults to
    False."""
    metrics_public: bool = False
    """Let everybody read `/metrics` who reaches it, also where requests are authenticated; else it is for admins.
    Defaults to False."""
    metrics_host: str = "127.0.0.1"
    """Address of the port that is for metrics alone. Whoever reaches it may read them. Defaults to 127.0.0.1."""
    metrics_port: int | None = Field(None, ge=0, le=65_535)
    """Serve metrics on a port of each process's own, the first free one from this on; 0: any; None: on none. For
    workers, and where several processes share the port of their app. Defaults to None."""
    metrics_topics: tuple[str, ...] = ()
    """Patterns by which published events are counted as well, each a value of the label `topic`. In the environment a
    JSON list. Defaults to ()."""
    tracing: bool = True
    """Make spans of events where the program has an OpenTelemetry tracer provider. Defaults to True."""
    log_format: Literal["text", "json"] = "text"
    """How `eventbus serve` and `eventbus worker` write their log, one line a record: text, or JSON objects. Defaults to
    text."""
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "info"
    """The least important messages that they log, where no option says it. Defaults to info."""

    # --- standalone server ---
    auth_file: str | None = None
    """TOML file with the keys of the standalone bus and what they grant, see docs/security.md. None: nobody is asked
    who they are. Defaults to None."""
    auth: SecretStr | None = None
    """The text of such a file, in its place. Defaults to None."""
    insecure: bool = False
    """Serve the standalone bus on any address although nobody is asked who they are. Defaults to False."""
    token: SecretStr | None = None
    """The token that `eventbus publish` and `eventbus tail` show to a bus. Defaults to None."""
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
            raise SettingsError(_explain_unreadable(exc)) from exc

    @field_validator("metrics_topics")
    @classmethod
    def _check_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(check_pattern(pattern) for pattern in patterns)
        except InvalidPattern as exc:
            raise ValueError(str(exc)) from exc

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


def _explain_unreadable(exc: UnreadableSetting) -> str:
    """A variable is no JSON, where JSON is read."""
    named = re.search(r'field "(\w+)"', str(exc))
    setting = named[1] if named else "queues"
    variable = f"{PREFIX}{setting.upper()}"
    given = next((value for name, value in os.environ.items() if name.upper() == variable), "")
    expected = "object" if setting == "queues" else "list"
    return f"setting {setting} ({variable}): expected a JSON {expected}, got {quote(given)}"
