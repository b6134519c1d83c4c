"""What the bus answers over HTTP about groups: how they are, what waits and what died; pause, reset, retry.

Bodies are read strictly: a filter with a misspelt member would mean more than was asked for.
"""

# Annotations are evaluated here: FastAPI reads those of the endpoints.
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple, cast, get_args

from fastapi import Path, Query, Request, Response
from pydantic import WithJsonSchema
from pydantic_core import to_json

from eventbus_fastapi.codec import MAX_TAGS
from eventbus_fastapi.errors import BadFrame, GroupNotFound, InvalidRequest
from eventbus_fastapi.pipeline.filters import dead_filter
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.pipeline.start import Start
from eventbus_fastapi.pipeline.steward import DEFAULT_MAX_ATTEMPTS, LARGEST_MAX_ATTEMPTS
from eventbus_fastapi.protocol import fields, schemas
from eventbus_fastapi.protocol.commands import MAX_PATTERNS
from eventbus_fastapi.server.bodies import json_answer, read_object, refuse_unknown
from eventbus_fastapi.server.group_objects import (
    entry_object,
    group_object,
    key_object,
    letter_object,
    rate_limit_object,
    retry_object,
)
from eventbus_fastapi.server.http import DEFAULT_LIMIT, Limit, Seq
from eventbus_fastapi.settings import ArchiveMode
from eventbus_fastapi.store.dead_letters import DeadFilter
from eventbus_fastapi.store.group_name import check_group_name
from eventbus_fastapi.store.limits import MAX_PERMITS
from eventbus_fastapi.topics import check_pattern

BODY_DEPTH = 4
"""Deepest nesting of a body here."""
DECLARED = ("patterns", "ordered_by", "max_attempts", "max_in_flight", "rate_limit", "archive")
"""What may be said of a group besides where it begins."""
MAX_SEQS = 1_000
"""Most dead letters that one request names."""

Name = Annotated[
    str,
    Path(
        description="Name of the group.",
        openapi_examples={"handler": {"value": "shop.send_welcome"}},
        json_schema_extra=schemas.PATH_NAME,
    ),
]
AfterSeq = Annotated[
    int,
    Query(
        ge=0,
        le=fields.MAX_SEQ,
        description="Those with a greater `seq` only.",
        openapi_examples={"start": {"value": 0}},
    ),
]
AfterId = Annotated[
    int,
    Query(
        ge=0,
        le=fields.MAX_SEQ,
        description="Those with a greater `id` only: `next` of the page before.",
        openapi_examples={"start": {"value": 0}},
    ),
]
OfGroup = Annotated[
    str | None,
    Query(
        description="Those of this group; absent: of all groups.",
        openapi_examples={"handler": {"value": "shop.send_welcome"}},
        json_schema_extra=schemas.PATH_NAME,
    ),
]
LimitName = Annotated[
    str,
    Path(
        description="Name of the rate limit.",
        openapi_examples={"limit": {"value": "mail"}},
        json_schema_extra=schemas.PATH_NAME,
    ),
]
Patterns = Annotated[
    Sequence[Annotated[str, WithJsonSchema(schemas.PATTERN)]],
    Query(
        alias="pattern",
        max_length=MAX_PATTERNS,
        description="Those whose topic matches any of these; repeatable.",
        openapi_examples={"one": {"value": ["user.*"]}},
    ),
]
Error = Annotated[
    str | None,
    Query(
        description="Those whose last error is of this type, with its module or without.",
        openapi_examples={"short": {"value": "ConnectError"}, "long": {"value": "httpx.ConnectError"}},
    ),
]
DiedAfter = Annotated[
    str | None,
    Query(
        description="Those that died at this time or later (RFC 3339).",
        openapi_examples={"time": {"value": "2026-01-01T00:00:00Z"}},
        json_schema_extra=schemas.TIME,
    ),
]
DiedBefore = Annotated[
    str | None,
    Query(
        description="Those that died before this time (RFC 3339).",
        openapi_examples={"time": {"value": "2026-01-01T00:00:00Z"}},
        json_schema_extra=schemas.TIME,
    ),
]
Attempts = Annotated[
    int,
    Query(
        ge=0,
        le=LARGEST_MAX_ATTEMPTS,
        description="Those of which so many attempts were begun, or more.",
        openapi_examples={"several": {"value": 3}},
    ),
]
Tags = Annotated[
    Sequence[Annotated[str, WithJsonSchema(schemas.TAG)]],
    Query(
        alias="tag",
        max_length=MAX_TAGS,
        description="Those that have all of these; repeatable.",
        openapi_examples={"one": {"value": ["billing"]}},
    ),
]


class GroupEndpoints:
    """The HTTP endpoints of one node that look after groups."""

    def __init__(self, node: Node) -> None:
        self._node = node

    # --- groups ---

    async def list_groups(self) -> Response:
        """Tell how all groups are: where they read, how far behind they are, what is in flight, waits, or is dead."""
        return _answer({"groups": [group_object(status) for status in await self._node.steward.groups()]})

    async def get_group(self, name: Name) -> Response:
        """Tell how a group is."""
        return await self._group(check_group_name(name))

    async def put_group(self, name: Name, request: Request) -> Response:
        """Make a group, before anybody reads with it. One that exists keeps its place, and takes over the rest."""
        body = await self._body(request, {*DECLARED, *POSITIONS})
        wanted = _read_group(body)
        is_new = not await self._exists(name)
        status = await self._node.steward.declare(name, **wanted)
        return _answer(group_object(status), 201 if is_new else 200)

    async def pause_group(self, name: Name, request: Request) -> Response:
        """Hand out nothing more of a group, on any node. What is in flight may be settled."""
        await self._body(request, set(), is_optional=True)
        await self._node.steward.pause(name)
        return await self._group(name)

    async def resume_group(self, name: Name, request: Request) -> Response:
        """End the pause of a group."""
        await self._body(request, set(), is_optional=True)
        await self._node.steward.resume(name)
        return await self._group(name)

    async def reset_group(self, name: Name, request: Request) -> Response:
        """Have a group read from elsewhere. What is in flight or waits for a retry is forgotten; dead letters stay."""
        body = await self._body(request, set(POSITIONS))
        start = _read_position(body)
        if start is None:
            raise InvalidRequest("expected one of the fields 'start', 'after' and 'time'")
        await self._node.steward.reset(name, start)
        return await self._group(name)

    async def delete_group(self, name: Name) -> Response:
        """Forget a group with its place, its retries and its dead letters. Answers how it was."""
        status = await self._node.steward.group(check_group_name(name))
        await self._node.steward.delete(name)
        return _answer(group_object(status))

    # --- what waits ---

    async def list_retries(self, name: Name, after: AfterSeq = 0, limit: Limit = DEFAULT_LIMIT) -> Response:
        """List what waits for another attempt or is held for one, by seq, without payloads."""
        retries = await self._node.steward.retries(name, after=after, limit=limit)
        following = retries[-1].seq if len(retries) == limit else None
        return _answer({"retries": [retry_object(item) for item in retries], "next": following})

    async def list_blocked_keys(self, name: Name, limit: Limit = DEFAULT_LIMIT) -> Response:
        """List keys of a group that is ordered by key whose events wait for one of them, the oldest first."""
        keys = await self._node.steward.blocked_keys(name, limit=limit)
        return _answer({"keys": [key_object(item) for item in keys]})

    # --- rate limits ---

    async def list_rate_limits(self) -> Response:
        """Tell how often the attempts of groups may begin, by the name of the limit."""
        limits = await self._node.steward.rate_limits()
        return _answer({"rate_limits": [rate_limit_object(limit) for limit in limits]})

    async def put_rate_limit(self, name: LimitName, request: Request) -> Response:
        """Make a rate limit, or change it; it holds at once, on every node. What it gave lately still counts."""
        body = await self._body(request, {"permits", "per"})
        try:
            permits = fields.required("permits", fields.integer(body, "permits", 1, MAX_PERMITS))
            per = fields.required("per", fields.seconds(body, "per"))
        except BadFrame as exc:
            raise InvalidRequest(str(exc)) from exc
        return _answer(rate_limit_object(await self._node.steward.set_rate_limit(name, permits, per)))

    # --- dead letters ---

    async def list_dead_letters(
        self,
        group: OfGroup = None,
        patterns: Patterns = (),
        error: Error = None,
        died_after: DiedAfter = None,
        died_before: DiedBefore = None,
        attempts: Attempts = 0,
        tags: Tags = (),
        after: AfterId = 0,
        limit: Limit = DEFAULT_LIMIT,
    ) -> Response:
        """List dead letters in the order in which they died, without payloads.

        What is rare may give fewer than `limit`, or none, with a `next` to go on after: one request looks at a part.
        """
        wanted = _filter(patterns, error, died_after, died_before, attempts, tags, what="query parameter")
        page = await self._node.steward.dead_letters(group, wanted, after=after, limit=limit)
        letters = [entry_object(name, entry) for name, entry in page.entries]
        return _answer({"dead_letters": letters, "next": page.next})

    async def get_dead_letter(self, group: Name, seq: Seq) -> Response:
        """Show a dead letter: the event with its payload, and all that went wrong."""
        return json_answer(letter_object(group, await self._node.steward.dead_letter(group, seq)))

    async def retry_dead_letters(self, request: Request) -> Response:
        """Have dead letters tried again in their group, at once and with all their attempts.

        Their TTL, if any, is forgotten. With a filter, one request looks at a part of them: repeat it with `after`
        until `next` is `null`.
        """
        chosen = _read_choice(await self._body(request, {"group", "seqs", "filter", "after"}))
        steward = self._node.steward
        if chosen.seqs is not None:
            return _answer({"retried": await steward.retry(chosen.group, chosen.seqs), "next": None})
        changed = await steward.retry_matching(chosen.group, chosen.wanted, after=chosen.after)
        return _answer({"retried": changed.done, "next": changed.next})

    async def discard_dead_letters(self, request: Request) -> Response:
        """Forget dead letters. With a filter, repeat it with `after` until `next` is `null`."""
        chosen = _read_choice(await self._body(request, {"group", "seqs", "filter", "after"}))
        steward = self._node.steward
        if chosen.seqs is not None:
            return _answer({"discarded": await steward.discard(chosen.group, chosen.seqs), "next": None})
        changed = await steward.discard_matching(chosen.group, chosen.wanted, after=chosen.after)
        return _answer({"discarded": changed.done, "next": changed.next})

    # --- parts ---

    async def _group(self, name: str) -> Response:
        return _answer(group_object(await self._node.steward.group(name)))

    async def _exists(self, name: str) -> bool:
        try:
            await self._node.steward.group(name)
        except GroupNotFound:
            return False
        return True

    async def _body(self, request: Request, known: set[str], *, is_optional: bool = False) -> Mapping[str, Any]:
        return await read_object(request, self._node.settings, known, max_depth=BODY_DEPTH, is_optional=is_optional)


POSITIONS = ("start", "after", "time")
"""Fields that say where a group reads, one of them."""
FILTERS = {"patterns", "error", "died_after", "died_before", "attempts", "tags"}


class _Choice(NamedTuple):
    """Which dead letters a body means."""

    group: str
    seqs: list[int] | None
    """None: those that are `wanted`, from behind the id `after`."""
    wanted: DeadFilter
    after: int


def _read_choice(body: Mapping[str, Any]) -> _Choice:
    try:
        group = fields.required("group", fields.string(body, "group"))
        seqs, given = fields.integers(body, "seqs", MAX_SEQS), fields.mapping(body, "filter")
        after = fields.integer(body, "after", 0, fields.MAX_SEQ) or 0
        if (seqs is None) == (given is None):
            raise InvalidRequest("expected one of the fields 'seqs' and 'filter'; an empty filter means all")
        if seqs is not None:
            return _Choice(group, sorted(seqs), DeadFilter(), 0)
        return _Choice(group, None, _read_filter(given or {}), after)
    except BadFrame as exc:
        raise InvalidRequest(str(exc)) from exc


def _read_filter(given: Mapping[str, Any]) -> DeadFilter:
    refuse_unknown(given, FILTERS)
    return _filter(
        _read_patterns(given),
        fields.string(given, "error"),
        fields.string(given, "died_after"),
        fields.string(given, "died_before"),
        fields.integer(given, "attempts", 0, LARGEST_MAX_ATTEMPTS) or 0,
        _read_tags(given),
        what="field",
    )


def _filter(
    patterns: Sequence[str],
    error: str | None,
    died_after: str | None,
    died_before: str | None,
    attempts: int,
    tags: Sequence[str],
    *,
    what: str,
) -> DeadFilter:
    return dead_filter(
        *patterns,
        error=error,
        died_after=_time(died_after, "died_after", what),
        died_before=_time(died_before, "died_before", what),
        attempts=attempts,
        tags=tags,
    )


def query_time(text: str | None, name: str) -> datetime | None:
    """Return the time that a query parameter says, if it was given.

    Raises:
        InvalidRequest: it is none.
    """
    return _time(text, name, "query parameter")


def _time(text: str | None, name: str, what: str) -> datetime | None:
    try:
        return None if text is None else fields.time(text, name)
    except BadFrame as exc:
        raise InvalidRequest(str(exc).replace("field", what, 1)) from exc


def _read_group(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Steward.declare`."""
    start = _read_position(body)
    try:
        return {
            "patterns": fields.required("patterns", _read_patterns(body) or None),
            "start": "now" if start is None else start,
            "ordered_by": cast(Literal["key"] | None, fields.choice(body, "ordered_by", ("key",))),
            "max_attempts": fields.integer(body, "max_attempts", 1, LARGEST_MAX_ATTEMPTS) or DEFAULT_MAX_ATTEMPTS,
            "max_in_flight": fields.integer(body, "max_in_flight", 1, LARGEST_MAX_ATTEMPTS),
            "rate_limit": fields.string(body, "rate_limit"),
            "archive": fields.choice(body, "archive", get_args(ArchiveMode)) or "none",
        }
    except BadFrame as exc:
        raise InvalidRequest(str(exc)) from exc


def _read_position(body: Mapping[str, Any]) -> Start | None:
    """Return where a body has a group read; None: it does not say."""
    given = [name for name in POSITIONS if body.get(name) is not None]
    if len(given) > 1:
        raise InvalidRequest(f"fields {' and '.join(map(repr, given))}: expected one of them, got {len(given)}")
    try:
        start = fields.choice(body, "start", ("now", "earliest"))
        after = fields.integer(body, "after", 0, fields.MAX_SEQ)
        time = fields.string(body, "time")
        found: Start | datetime | None = after if start is None else cast(Literal["now", "earliest"], start)
        return fields.time(time, "time") if time is not None else found
    except BadFrame as exc:
        raise InvalidRequest(str(exc)) from exc


def _read_patterns(body: Mapping[str, Any]) -> list[str]:
    patterns = fields.array(body, "patterns") or []
    if len(patterns) > MAX_PATTERNS:
        raise InvalidRequest(f"field 'patterns': expected at most {MAX_PATTERNS}, got {len(patterns):,}")
    return [check_pattern(pattern) for pattern in patterns]


def _read_tags(given: Mapping[str, Any]) -> list[str]:
    tags = fields.array(given, "tags") or []
    if len(tags) > MAX_TAGS:
        raise InvalidRequest(f"field 'tags': expected at most {MAX_TAGS}, got {len(tags):,}")
    return tags


def _answer(content: Any, status: int = 200) -> Response:
    return json_answer(to_json(content), status)
