"""What looks after recurring events: declared by a program, seen and changed by whoever runs a bus.

Like the steward of groups it works on the store alone: nodes learn within half a minute of what was changed elsewhere,
and publish nothing that is not due by then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypedDict, Unpack, get_args

from eventbus_fastapi.codec import new_message_id
from eventbus_fastapi.cron import Cron
from eventbus_fastapi.errors import InvalidRecurring, quote
from eventbus_fastapi.events import UNSET, Draft, Event, Receipt, make_draft
from eventbus_fastapi.names import MAX_NAME, is_name
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import Store
from eventbus_fastapi.store.recurring import (
    NAMED_BY,
    SCHEDULED_AT,
    Declaration,
    Missed,
    RecurringEvent,
    metadata_at,
)


class RecurringOptions(TypedDict, total=False):
    """What may be said about a recurring event beside its schedule, topic and payload."""

    key: str | None
    """Names the thing that the events are about; at most 255 bytes."""
    metadata: Mapping[str, Any] | None
    """A JSON object; `recurring` and `scheduled_at` are added to it."""
    ttl: float | timedelta | None
    """Seconds from an event's entry into the log until it is no longer delivered."""
    content_type: str | None
    """Instead of text/plain, application/octet-stream or application/json."""
    tags: Sequence[str] | None
    """At most 20 different words of 1 to 64 bytes; they are the list `tags` of the metadata."""


class Recurring:
    """See the module's docstring.

        eventbus.recurring("nightly-report", "0 3 * * *", MakeReport(…), timezone="Europe/Berlin")
        await eventbus.recurring.pause("nightly-report")

    All that await raise `StoreUnavailable` where the database is away, and `RecurringNotFound` where a name is given
    that is not there.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        declared: dict[str, Declaration],
        *,
        require: Callable[[], None] = lambda: None,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._events = store.recurring
        self._settings = settings
        self._declared = declared
        self._require = require
        self._tell = tell

    def __call__(
        self,
        name: str,
        cron: str,
        event: Event | str,
        payload: Any = UNSET,
        *,
        timezone: str = "UTC",
        missed: Missed = "last",
        **options: Unpack[RecurringOptions],
    ) -> None:
        """Declare a recurring event in the program, before the bus starts or while it runs.

        Each tick is published once, by any of the nodes, with its time in the metadata (`scheduled_at`, RFC 3339)
        beside the name (`recurring`). It is written down when the bus starts: by the first node that says something
        else than was said last, so that what was changed in the store since then stays, a pause in any case. One that
        is no longer declared stays until it is deleted.

        Args:
            name: 1 to 255 bytes without spaces, slashes and control characters.
            cron: minute, hour, day of month, month, day of week; or @hourly, @daily, @weekly, @monthly, @yearly.
            event: an `Event`, or a topic with any payload beside it.
            payload: as of `publish`.
            timezone: whose clock `cron` goes by, such as Europe/Berlin. Defaults to UTC.
            missed: what becomes of ticks that no node published in time: `last` (the default) publishes one event for
                all of them, `all` one for each, `skip` none that is late by a minute or more.
            options: see `RecurringOptions`.

        Raises:
            InvalidRecurring: the name, the expression, the time zone or `missed` cannot be used.
            InvalidInput: the event cannot be published, see `draft`.
        """
        name = check_name(name)
        if name in self._declared:
            raise InvalidRecurring(f"recurring event {quote(name)} is declared already; names are unique")
        self._declared[name] = self._declaration(name, cron, event, payload, timezone, missed, options)
        self._tell()

    # --- what there is ---

    async def all(self) -> list[RecurringEvent]:
        """Return all, by name."""
        self._require()
        return await self._events.all()

    async def get(self, name: str) -> RecurringEvent:
        """Return one."""
        self._require()
        return await self._events.get(check_name(name))

    # --- changes ---

    async def declare(
        self,
        name: str,
        cron: str,
        event: Event | str,
        payload: Any = UNSET,
        *,
        timezone: str = "UTC",
        missed: Missed = "last",
        **options: Unpack[RecurringOptions],
    ) -> RecurringEvent:
        """Make a recurring event in the store, or have one become as given here; a pause stays.

        Its next tick is the first after now, or, if neither expression nor time zone changed, the one that it was.
        Arguments and errors are those of a declaration in the program, which does not overrule this before it
        says something else than it said last.
        """
        self._require()
        name = check_name(name)
        made = await self._events.put(name, self._declaration(name, cron, event, payload, timezone, missed, options))
        self._tell()
        return made

    async def change(
        self,
        name: str,
        *,
        cron: str | None = None,
        timezone: str | None = None,
        missed: Missed | None = None,
        payload: Any = UNSET,
    ) -> RecurringEvent:
        """Change some of one, in the store; None, or no payload: that stays.

        Raises:
            InvalidRecurring, InvalidPayload, PayloadTooLarge: it cannot be used; nothing was changed.
        """
        self._require()

        def changed(event: RecurringEvent) -> Declaration:
            said = event.declaration
            if payload is not UNSET:
                draft = self._draft(said.topic, payload, {})
                said = said._replace(payload=draft.payload, content_type=draft.content_type)
            return said._replace(
                **_schedule(
                    said.cron if cron is None else cron,
                    said.timezone if timezone is None else timezone,
                    said.missed if missed is None else missed,
                )
            )

        event = await self._events.change(check_name(name), changed)
        self._tell()
        return event

    async def pause(self, name: str) -> RecurringEvent:
        """Publish nothing of one, on any node, until it is resumed."""
        self._require()
        return await self._events.pause(check_name(name))

    async def resume(self, name: str) -> RecurringEvent:
        """End a pause. The next tick is the first after now; those of the pause are not published."""
        self._require()
        event = await self._events.resume(check_name(name))
        self._tell()
        return event

    async def delete(self, name: str) -> RecurringEvent:
        """Forget one; return how it was. A program that still declares it makes it again when it starts."""
        self._require()
        return await self._events.delete(check_name(name))

    async def run(self, name: str) -> Receipt:
        """Publish one event of it now, also if it is paused; its ticks stay as they are."""
        self._require()
        event = await self._events.get(check_name(name))
        said = event.declaration
        metadata = metadata_at(event.name, said.metadata, await self._store.now())
        draft = Draft(
            new_message_id(), said.topic, said.key, said.payload, said.content_type, metadata, said.ttl, None, None
        )
        receipt = (await self._store.append([draft])).receipts[0]
        self._tell()
        return receipt

    # --- parts ---

    def _declaration(
        self,
        name: str,
        cron: str,
        event: Event | str,
        payload: Any,
        timezone: str,
        missed: Missed,
        options: RecurringOptions,
    ) -> Declaration:
        draft = self._draft(event, payload, options)
        _check_metadata(name, options.get("metadata"), draft)
        schedule = _schedule(cron, timezone, missed)
        return Declaration(
            topic=draft.topic,
            key=draft.key,
            payload=draft.payload,
            content_type=draft.content_type,
            metadata=draft.metadata,
            ttl=draft.ttl,
            **schedule,
        )

    def _draft(self, event: Event | str, payload: Any, options: RecurringOptions) -> Draft:
        for option in options:
            if option not in RecurringOptions.__annotations__:
                known = ", ".join(RecurringOptions.__annotations__)
                raise InvalidRecurring(f"a recurring event has no option {quote(option)}; expected {known}")
        limits = self._settings
        return make_draft(event, payload, max_payload=limits.max_payload, max_depth=limits.max_depth, **options)


def check_name(name: object) -> str:
    """Return the name of a recurring event.

    Raises:
        InvalidRecurring: it cannot be one.
    """
    if not isinstance(name, str):
        raise InvalidRecurring(f"the name of a recurring event must be str, got {type(name).__name__}")
    if not is_name(name) or "/" in name or name in (".", ".."):
        expected = f"1 to {MAX_NAME} bytes without spaces, slashes and control characters"
        raise InvalidRecurring(f"the name of a recurring event must be {expected}, got {quote(name)}")
    return str.__str__(name)


def _schedule(cron: object, timezone: object, missed: object) -> dict[str, Any]:
    checked = Cron(cron, timezone)
    if missed not in get_args(Missed):
        raise InvalidRecurring(f"missed must be one of {', '.join(get_args(Missed))}, got {quote(missed)}")
    return {"cron": checked.expression, "timezone": checked.timezone, "missed": missed}


def _check_metadata(name: str, metadata: Mapping[str, Any] | None, draft: Draft) -> None:
    for key in (NAMED_BY, SCHEDULED_AT):
        if metadata is not None and key in metadata:
            raise InvalidRecurring(f"metadata key {quote(key)} is reserved: a recurring event sets it")
    metadata_at(name, draft.metadata, 0)
