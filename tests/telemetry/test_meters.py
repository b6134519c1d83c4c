"""Meters: plain numbers, with labels that are few whatever clients send."""

from __future__ import annotations

import threading

from eventbus_fastapi.events import Draft, Receipt
from eventbus_fastapi.telemetry.meters import Histogram, Meters
from tests.drafts import draft, drafts


def receipts(stored: list[Draft], duplicates: int = 0) -> list[Receipt]:
    return [Receipt(each.message_id, place, place <= duplicates) for place, each in enumerate(stored, start=1)]


def test_what_takes_as_long_as_a_bound_is_in_its_bucket() -> None:
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.1, 0.2, 1.0, 7.0):
        histogram.observe(seconds)
    assert histogram.counts == [1, 2, 1]
    assert histogram.sum == 8.3


def test_duplicates_count_apart_from_what_was_stored() -> None:
    meters = Meters()
    stored = drafts(3)
    meters.note_stored(receipts(stored, duplicates=2), stored, is_all_new=False)
    assert (meters.published["log"], meters.duplicates) == (1, 2)


def test_topics_are_counted_by_the_patterns_that_were_asked_for_only() -> None:
    meters = Meters(["user.*", "#", "order.paid"])
    meters.note_published("log", [draft("user.created"), draft("user.deleted"), draft("other")])
    assert meters.published_by_topic == {"user.*": 2, "#": 3, "order.paid": 0}


def test_without_patterns_no_topic_is_remembered() -> None:
    meters = Meters()
    meters.note_published("log", [draft(f"user.{number}") for number in range(10)])
    assert (meters.published["log"], meters.published_by_topic) == (10, {})


def test_threads_that_publish_at_the_same_time_are_all_counted() -> None:
    meters = Meters(["#"])
    event = draft("a")

    def publish() -> None:
        for _ in range(2_000):
            meters.note_published("outbox", (event,))

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meters.published["outbox"] == meters.published_by_topic["#"] == 8_000
