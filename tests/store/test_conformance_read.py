"""Every store: what is read is what was published, byte for byte, in the order of the log."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from eventbus_fastapi.errors import NotFound
from eventbus_fastapi.events import Draft, Message
from eventbus_fastapi.store import OutboxWriter, Store
from tests.drafts import draft, drafts
from tests.waiting import eventually

PAYLOADS: dict[str, tuple[Any, str | None]] = {
    "every byte": (bytes(range(256)), None),
    "every byte, twice, backwards": (bytes(range(256))[::-1] * 2, None),
    "no byte": (b"", None),
    "NUL bytes": (b"\x00" * 1_000, None),
    "bytes that are no UTF-8": (b"\xff\xfe\xed\xa0\x80\xc0", None),
    "what SQL quotes": (b"'\"\\%s %(x)s :x ?? ; -- \x1a\n\r", None),
    "empty text": ("", None),
    "text": ("Grüße, 世界 🚀 \U0010ffff", None),
    "text with NUL": ("a\x00b", None),
    "JSON null": (None, None),
    "JSON with NUL and emoji": ({"\x00": "\x00 🚀"}, None),
    "JSON order of keys": ({"b": 1, "a": {"d": 2, "c": 3}}, None),
    "JSON of big and small numbers": ([2**53, -(2**53), 0.1, 1e-300, 1.7976931348623157e308], None),
    "bytes called JSON": (b'{ "spaced" :  1 }', "application/json"),
}


async def as_published(store: Store, event: Draft) -> Message:
    """Publish an event directly and through the outbox, see that both come out as they went in, and return it."""
    twin = draft()._replace(**{**event._asdict(), "message_id": draft().message_id})
    await store.append([event])
    async with store.engine.begin() as connection:
        await OutboxWriter(store.sql, lambda: None).add(connection, twin)
    await store.sequence()
    one, two = (await store.read(0, 10)).messages
    for message, given in ((one, event), (two, twin)):
        assert type(message.body) is bytes
        assert message.body == given.payload
        assert message.content_type == given.content_type
        assert (message.message_id, message.topic, message.key) == (given.message_id, given.topic, given.key)
        assert message.metadata_json == given.metadata
    return one


@pytest.mark.parametrize("name", PAYLOADS)
async def test_a_payload_comes_back_exactly_as_it_went_in(store: Store, name: str) -> None:
    payload, content_type = PAYLOADS[name]
    message = await as_published(store, draft(payload=payload, content_type=content_type))
    if content_type is None:
        assert message.payload == payload
        assert type(message.payload) is type(payload)


@pytest.mark.parametrize("size", [65_535, 65_536, 262_144, 1_048_576])
async def test_a_large_payload_comes_back_whole(store: Store, size: int) -> None:
    await as_published(store, draft(payload=bytes(range(256)) * (size // 256) + b"\x00" * (size % 256)))


async def test_many_large_payloads_fit_one_append(store: Store) -> None:
    await store.append(
        [draft(payload=b"\x00\\'" * 87_381) for _ in range(16)]
    )  # all that one commit takes, the worst to escape
    assert [len(message.body) for message in (await store.read(0, 100)).messages] == [262_143] * 16


async def test_everything_of_an_event_comes_back(store: Store) -> None:
    event = draft(
        "a.b-c_d:e@f/g", {"id": 7}, key="Schlüssel 🔑", metadata={"trace": "x" * 5_000, "n": {"z": 1, "a": [None]}}
    )
    message = await as_published(store, event)
    assert message.metadata == {"trace": "x" * 5_000, "n": {"z": 1, "a": [None]}}
    assert message.expires_at is None


async def test_what_an_event_does_not_have_stays_absent(store: Store) -> None:
    message = await as_published(store, draft())
    assert (message.key, message.metadata_json, message.expires_at) == (None, None, None)


async def test_topics_and_keys_that_differ_by_case_accent_or_a_space_are_different(store: Store) -> None:
    topics = ["user.created", "User.created", "USER.CREATED"]
    keys = ["key", "KEY", "key ", " key", "kéy", "ke\u0301y"]
    await store.append([draft(topic) for topic in topics] + [draft(key=key) for key in keys])
    messages = (await store.read(0, 100)).messages
    assert [message.topic for message in messages[:3]] == topics
    assert [message.key for message in messages[3:]] == keys


async def test_the_longest_topic_and_key_fit(store: Store) -> None:
    topic, key = ".".join(["a" * 15] * 15 + ["b" * 15]), "🔑" * 63 + "abc"
    assert (len(topic), len(key.encode())) == (255, 255)
    message = await as_published(store, draft(topic, key=key))
    assert (message.topic, message.key) == (topic, key)


# --- pages ---------------------------------------------------------------------------------------


async def test_pages_follow_one_another(store: Store) -> None:
    await store.append(drafts(25))
    seen, after = [], 0
    while True:
        scan = await store.read(after, 10)
        seen += [message.payload for message in scan.messages]
        after = scan.scanned_to
        if scan.is_last:
            break
    assert seen == list(range(1, 26))
    assert after == 25


async def test_a_page_says_what_it_looked_at(store: Store) -> None:
    await store.append(drafts(3))
    scan = await store.read(1, 1)
    assert ([m.seq for m in scan.messages], scan.scanned_to, scan.is_last, scan.first) == ([2], 2, False, 2)
    scan = await store.read(1, 10)
    assert ([m.seq for m in scan.messages], scan.scanned_to, scan.is_last, scan.first) == ([2, 3], 3, True, 2)
    assert await store.read(3, 10) == ([], 3, True, None)
    assert await store.read(99, 10) == ([], 99, True, None)


async def test_a_page_after_a_removed_part_says_where_it_begins(store: Store) -> None:
    await store.append(drafts(5))
    await store.trim(before=None, keep=2)
    scan = await store.read(1, 10)
    assert (scan.first, [message.seq for message in scan.messages]) == (4, [4, 5])


async def test_a_page_of_large_events_ends_early(store: Store) -> None:
    """A thousand of the largest would be a quarter of a gigabyte at once."""
    await store.append(drafts(20))
    await store.append([draft(payload=bytes(1_500_000)) for _ in range(4)])
    await store.append([draft(payload=bytes(5_000_000)), *drafts(200)])
    pages, after, is_last = [], 0, False
    while not is_last:
        scan = await store.read(after, 1_000)
        seqs = [message.seq for message in scan.messages]
        assert (scan.first, scan.scanned_to) == (after + 1, seqs[-1])
        pages.append(len(seqs))
        after, is_last = scan.scanned_to, scan.is_last
    assert after == 225
    assert pages == [23, 2, 200]
    assert len((await store.read(23, 1)).messages) == 1


async def test_a_page_that_ends_with_its_bytes_where_the_log_does_is_the_last(store: Store) -> None:
    await store.append([draft(payload=bytes(1_500_000)) for _ in range(3)])
    scan = await store.read(0, 10)
    assert ([message.seq for message in scan.messages], scan.is_last) == ([1, 2, 3], True)
    assert [len(message.body) for message in scan.messages] == [1_500_000] * 3
    assert not (await store.read(0, 3)).is_last


async def test_reading_while_others_append_never_sees_a_hole(store: Store) -> None:
    done = asyncio.Event()
    seen: list[int] = []

    async def read() -> None:
        while not (done.is_set() and len(seen) == 150):
            after = seen[-1] if seen else 0
            seen.extend(message.seq for message in (await store.read(after, 7)).messages)

    async def write() -> None:
        for _ in range(50):
            await store.append(drafts(3))
        done.set()

    await asyncio.gather(read(), write())
    assert seen == list(range(1, 151))


# --- one event -----------------------------------------------------------------------------------


async def test_one_event_is_read_by_its_seq_with_its_status(store: Store) -> None:
    event = draft("a.b", {"x": 1}, key="k")
    await store.append([draft(), event])
    stored = await store.get(2)
    assert stored.status == "pending"
    assert (stored.message.seq, stored.message.message_id, stored.message.payload) == (2, event.message_id, {"x": 1})


@pytest.mark.parametrize("seq", [0, -1, 2, 2**63 - 1])
async def test_a_seq_that_was_never_given_is_not_found(store: Store, seq: int) -> None:
    await store.append([draft()])
    with pytest.raises(NotFound, match=f"no event at seq {seq}"):
        await store.get(seq)


# --- expiry --------------------------------------------------------------------------------------


async def test_an_event_is_delivered_until_its_ttl_is_over_and_not_after(store: Store) -> None:
    await store.append([draft(payload="hour", ttl=3_600), draft(payload="over", ttl=1e-6), draft(payload="ever")])

    async def delivered() -> list[Any]:
        return [message.payload for message in (await store.read(0, 10)).messages]

    await eventually(lambda: _is(delivered, ["hour", "ever"]))
    assert (await store.get(1)).message.payload == "hour"
    with pytest.raises(NotFound):
        await store.get(2)


async def test_a_page_of_expired_events_is_passed(store: Store) -> None:
    await store.append([*drafts(4, ttl=1e-6), draft(payload="kept")])
    scan = await eventually(lambda: _empty(store, 0, 2))
    assert (scan.messages, scan.scanned_to, scan.is_last, scan.first) == ([], 2, False, 1)
    scan = await store.read(2, 10)
    assert [message.payload for message in scan.messages] == ["kept"]


# --- times ---------------------------------------------------------------------------------------


async def test_reading_from_a_time_begins_with_the_first_event_at_or_after_it(store: Store) -> None:
    for _ in range(9):
        await store.append([draft()])
        await _next_tick(store)
    times = {message.seq: message.created_at for message in (await store.read(0, 10)).messages}
    for seq, time in times.items():
        assert await store.seek(time) == seq - 1
        assert await store.seek(time + 1) == seq
        assert await store.seek(time - 1) == seq - 1
    assert await store.seek(0) == 0
    assert await store.seek(await store.now() + 10**12) == 9


async def test_a_time_finds_its_place_in_a_log_with_holes(store: Store) -> None:
    for number in range(12):
        await store.append([draft(ttl=1e-6 if number % 4 else None)])
        await _next_tick(store)
    times = {message.seq: message.created_at for message in (await store.read(0, 20)).messages}
    await eventually(lambda: _removed(store, 9))
    await store.trim(before=None, keep=11)
    assert await store.seek(0) == 1
    assert await store.seek(times[5]) in {1, 2, 3, 4}
    assert await store.seek(times[5] + 1) in {5, 6, 7, 8}
    assert await store.seek(times[9] + 1) >= 9


async def test_a_time_in_an_empty_log_is_its_end(store: Store) -> None:
    assert await store.seek(await store.now()) == 0


async def test_the_clock_does_not_go_back(store: Store) -> None:
    times = [await store.now() for _ in range(20)]
    assert times == sorted(times)


async def _next_tick(store: Store) -> None:
    """Wait until the database's clock shows another time; SQLite's has milliseconds."""
    before = await store.now()
    await eventually(lambda: _later(store, before))


async def _later(store: Store, before: int) -> bool:
    return await store.now() > before + 1_000


async def _is(look: Any, expected: object) -> bool:
    return bool(await look() == expected)


async def _empty(store: Store, after: int, limit: int) -> Any:
    scan = await store.read(after, limit)
    return None if scan.messages else scan


async def _removed(store: Store, count: int) -> bool:
    await store.remove_expired()
    return len((await store.read(0, 100)).messages) == 12 - count
