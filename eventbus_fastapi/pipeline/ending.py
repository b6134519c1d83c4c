"""Endings: what of a delivery's outcome goes to the archive of its group, by what the group keeps."""

from __future__ import annotations

import json
import time
from typing import Any, assert_never

from eventbus_fastapi.pipeline.delivery import Delivery, Release, Settled
from eventbus_fastapi.pipeline.error_record import ErrorRecord
from eventbus_fastapi.pipeline.outcome import Ack, Dead, Discard, Retry, Snooze
from eventbus_fastapi.store.group import Ended, Ending


def ending_of(delivery: Delivery, settled: Settled, owner: str) -> Ending | None:
    """Return how a delivery has ended, made by the node `owner`; None: it has not, or its group does not keep that.

    Of one that was discarded, the reason is the last of the errors, as a record of the type `Discard`.
    """
    if delivery.archive == "none":
        return None
    match settled:
        case Ack():
            is_kept = delivery.archive == "all" or bool(delivery.errors)
            return _ending(delivery, "acked", owner, None) if is_kept else None
        case Discard():
            now = time.time_ns() // 1_000
            reason = ErrorRecord("Discard", settled.reason, time=now, node=owner, attempt=delivery.attempt)
            return _ending(delivery, "discarded", owner, reason)
        case Dead():
            return _ending(delivery, "dead", owner, settled.error)
        case Retry() | Snooze() | Release():
            return None
        case _:
            assert_never(settled)


def with_error(delivery: Delivery, error: ErrorRecord | None) -> list[dict[str, Any]]:
    """Return what went wrong with an event, its last attempt too."""
    return delivery.errors if error is None else [*delivery.errors, json.loads(error.to_json())]


def _ending(delivery: Delivery, outcome: Ended, owner: str, error: ErrorRecord | None) -> Ending:
    return Ending(delivery.message, outcome, delivery.attempt, delivery.duration, owner, with_error(delivery, error))
