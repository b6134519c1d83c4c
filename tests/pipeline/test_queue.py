"""Queues: what a program may say about one, and how its deployment replaces it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from eventbus_fastapi import EventBus, Settings
from eventbus_fastapi.errors import InvalidHandler
from eventbus_fastapi.pipeline.queue import Queue
from eventbus_fastapi.settings import QueueSettings


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        *(({"workers": value}, "workers must be an integer from 1 to 1,000") for value in (0, 1.5, True, 1_001, "5")),
        *(({"batch_size": value}, "batch_size must be an integer from 1 to 1,000") for value in (0, 1_001)),
        *(
            ({"poll_interval": value}, "poll_interval must be a number of seconds from 0.05 to 3,600")
            for value in (0, 0.01, 3_601, math.nan, math.inf, "1", True)
        ),
        ({"archive": "some"}, "archive must be one of all, failed, none, got 'some'"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(wrong: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidHandler, match=f"queue 'email': {expected}"):
        EventBus().queue("email", **wrong)


def test_what_the_settings_say_replaces_what_the_program_says_field_by_field() -> None:
    said = Queue("email", workers=5, batch_size=20, poll_interval=60)
    assert said.replaced_by(QueueSettings(workers=50, archive="failed")) == Queue("email", 50, 20, 60, "failed")


def test_a_queue_is_served_as_program_and_settings_say_together() -> None:
    eventbus = EventBus(settings=Settings(queues={"email": {"workers": 50}, "audit": {"batch_size": 7}}))
    eventbus.queue("email", workers=5, batch_size=20)
    described = eventbus.workers.described
    assert described("email") == Queue("email", 50, 20)
    assert described("audit") == Queue("audit", batch_size=7)
    assert described("default") == Queue("default")
