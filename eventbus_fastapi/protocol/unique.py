"""The object `unique` of a published event: what makes it a duplicate of an earlier one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from eventbus_fastapi.errors import BadFrame, quote
from eventbus_fastapi.protocol import fields
from eventbus_fastapi.unique import Unique

NAMES = ("fields", "key", "metadata", "within", "replace")


def unique_object(rule: Unique) -> dict[str, Any]:
    """Return the JSON object of a rule; what is the default is left out."""
    within = rule.within.total_seconds() if isinstance(rule.within, timedelta) else rule.within
    written = {"key": rule.key, "metadata": rule.metadata, "replace": rule.replace}
    return {
        **({} if rule.fields is None else {"fields": rule.fields}),
        **{name: value for name, value in written.items() if value},
        **({} if within is None else {"within": within}),
    }


def parse_unique(event: fields.Object) -> Unique | None:
    """Return the rule of an event; None: it has none.

    Raises:
        BadFrame: a field of it has the wrong type, or is unknown: a slip would make duplicates of different events.
        InvalidEvent: it does not follow the rules.
    """
    given = fields.mapping(event, "unique")
    if given is None:
        return None
    for name in given:
        if name not in NAMES:
            raise BadFrame(f"field 'unique': unknown field {quote(name)}; expected {', '.join(NAMES)}")
    try:
        return Unique(
            fields=fields.array(given, "fields"),
            key=fields.boolean(given, "key") or False,
            metadata=fields.array(given, "metadata") or (),
            within=fields.seconds(given, "within"),
            replace=fields.array(given, "replace") or (),
        )
    except BadFrame as exc:
        exc.args = (f"field 'unique': {exc}",)
        raise
