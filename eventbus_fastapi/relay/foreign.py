"""A message of a broker, and the events that it becomes. Pure: nothing is read, stored or acknowledged here.

| of the event | where it comes from |
|---|---|
| topic | `topic` or `topic_template`, if given; else what an event of a bus or a CloudEvent says, or the subject |
| payload | the body, as it is |
| content type | what the message says, else the ingest's `content_type`, else application/octet-stream |
| metadata | the headers that JSON can hold, at most 16 KiB; `ingest` says where from, and what is missing |
| message_id | see `message_id_of` |

The same message gives the same events whenever it is delivered: that is what makes a redelivery harmless.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Literal, NamedTuple
from uuid import UUID

from eventbus_fastapi import codec
from eventbus_fastapi.codec.metadata import MAX_METADATA, MAX_METADATA_KEYS, RESERVED_METADATA
from eventbus_fastapi.errors import InvalidCloudEvent, InvalidEvent, InvalidPayload, InvalidTopic
from eventbus_fastapi.events import UNSET, Draft, make_draft
from eventbus_fastapi.protocol import cloudevents
from eventbus_fastapi.relay.brokers import BrokerKind
from eventbus_fastapi.relay.headers import CONTENT_TYPE, Relayed, relayed_of
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.telemetry.tracing import TRACEPARENT, TRACESTATE
from eventbus_fastapi.topics import check_topic

Identity = Literal["given", "content", "delivery"]
"""What a message is known by that has no id: nothing (it is refused), what it says, or that it was delivered."""

INGEST = "ingest"
"""The name in the metadata under which an event's way in is kept."""
CLOUDEVENT_PREFIXES = ("cloudevents:", "cloudevents_", "ce-", "ce_")
"""Of headers with attributes, as AMQP, NATS and Kafka have them."""
COMPRESSIONS = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "bzip2", "lzma", "xz"})
OF_BROKER = frozenset({"x-delivery-count", "x-acquired-count"})
"""Headers that RabbitMQ changes with each delivery."""
ROOM = 512
"""Bytes of metadata that are kept free for what the ingest itself says."""
MOST_NAMED = 10
"""Headers that are named as left out; of more, only the number is told."""


class Rules(NamedTuple):
    """How the messages of one source become events."""

    kind: BrokerKind
    source: str
    """The queue, stream or topic of the broker."""
    topic: str | None = None
    """Of all events; None: see `topic_template`."""
    topic_template: str | None = None
    """Of `{subject}`, `{source}` and `{header:NAME}`; None: the subject is the topic."""
    content_type: str | None = None
    """Of messages that say none."""
    identity: Identity = "given"


class Foreign(NamedTuple):
    """A message as a broker has it."""

    subject: str
    """Its subject, routing key or stream."""
    body: bytes
    headers: Mapping[str, Any]
    content_type: str | None = None
    encoding: str | None = None
    """Of the body, such as gzip."""
    key: str | None = None
    given_id: str | None = None
    """What its sender calls it."""
    place: str | None = None
    """Where it is in its source, the same for each delivery; None: the broker does not say."""
    is_again: bool = False
    """The broker says that it may have been delivered before."""
    handle: Any = None
    """What its source acknowledges it by."""


def drafts_of(foreign: Foreign, rules: Rules, settings: Settings) -> list[Draft]:
    """Return the events that a message is: one, or those of a batch of CloudEvents.

    Raises:
        InvalidInput: it cannot be one; the message says why.
    """
    headers = {str(name).lower(): value for name, value in foreign.headers.items()}
    content_type = _content_type(foreign, headers, rules)
    relayed = relayed_of(headers)
    media_type = content_type.partition(";")[0].strip().lower()
    is_structured = media_type in (cloudevents.STRUCTURED, cloudevents.BATCH)
    if relayed is not None and not is_structured:
        return [_relayed(foreign, relayed, content_type, headers, rules, settings)]
    attributes = _attributes_in(headers)
    if is_structured or "specversion" in attributes:
        found = [
            _with_facts(draft, foreign, headers, rules)
            for draft in _cloudevents(foreign, media_type, attributes, content_type, settings)
        ]
        if relayed is not None and len(found) == 1:  # a CloudEvent of another source has another id
            found = [found[0]._replace(message_id=relayed.message_id)]
        return found
    metadata, left_out = _metadata_of(foreign.headers)
    if foreign.encoding is not None and foreign.encoding.lower() in COMPRESSIONS:
        metadata["content_encoding"] = foreign.encoding  # the bytes as they are, and what they would be
        if content_type != codec.BINARY:
            metadata["encoded_content_type"] = content_type
        content_type = codec.BINARY
    topic = _topic(rules, foreign, headers, foreign.subject)
    draft = make_draft(
        topic,
        foreign.body,
        key=foreign.key,
        message_id=message_id_of(foreign, rules),
        metadata=metadata | {INGEST: _facts(foreign, rules, topic, left_out)},
        content_type=content_type,
        max_payload=settings.max_payload,
        max_depth=settings.max_depth,
    )
    return [draft]


def message_id_of(foreign: Foreign, rules: Rules) -> UUID:
    """Return by what the bus knows a message, whenever it is delivered.

    A UUID that the sender gave; else one made of its place in the source; else of the sender's id there; else as
    `identity` says: of all that the message says, or a new one for each delivery.

    Raises:
        InvalidEvent: it has none of these, and `identity` is `given`.
    """
    given = foreign.given_id
    if given is not None and _UUID.fullmatch(given):
        return UUID(given)
    if foreign.place is not None:
        return codec.derived_message_id(INGEST, rules.kind, rules.source, "place", foreign.place)
    if given:
        return codec.derived_message_id(INGEST, rules.kind, rules.source, "id", _writable(given))
    if rules.identity == "content":
        headers = sorted((str(name), repr(value)) for name, value in foreign.headers.items() if name not in OF_BROKER)
        said = (foreign.subject, foreign.content_type or "", foreign.encoding or "", repr(headers))
        digest = sha256(foreign.body).hexdigest()
        return codec.derived_message_id(INGEST, rules.kind, rules.source, "content", *map(_writable, said), digest)
    if rules.identity == "delivery":
        return codec.new_message_id()
    raise InvalidEvent(
        "it has no message_id, so a redelivery could not be told from another message: have its sender give one, or"
        " choose identity='content' (equal messages are one event) or 'delivery' (one redelivered may be two)"
    )


_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32}")
"""As text, or as aio-pika writes those that it makes up for whoever gives none."""


# --- topics --------------------------------------------------------------------------------------

_PART = re.compile(r"\{([^{}]*)\}")
HEADER = "header:"


def check_template(template: str) -> None:
    """Refuse a template that names something else than `{subject}`, `{source}` or `{header:NAME}`.

    Raises:
        InvalidTopic: it does, or it is none.
    """
    expected = "a topic template has {subject}, {source} and {header:NAME} in braces"
    for name in _PART.findall(template):
        if name not in ("subject", "source") and not (name.startswith(HEADER) and name != HEADER):
            raise InvalidTopic(template, f"{expected}, got {{{name}}}")
    if not template or any(brace in _PART.sub("", template) for brace in "{}"):
        raise InvalidTopic(template, expected)


def _topic(rules: Rules, foreign: Foreign, headers: Mapping[str, Any], otherwise: str) -> str:
    if rules.topic is not None:
        return rules.topic
    if rules.topic_template is None:
        return otherwise

    def value_of(found: re.Match[str]) -> str:
        name = found[1]
        if not name.startswith(HEADER):
            return foreign.subject if name == "subject" else rules.source
        value = _plain(headers.get(name.removeprefix(HEADER).lower()))
        if not isinstance(value, str | int):
            raise InvalidTopic(rules.topic_template, f"the message has no header {name.removeprefix(HEADER)}")
        return str(value)

    return _PART.sub(value_of, rules.topic_template)


def _content_type(foreign: Foreign, headers: Mapping[str, Any], rules: Rules) -> str:
    given = foreign.content_type or _plain(headers.get(CONTENT_TYPE))
    return str(given) if given else rules.content_type or codec.BINARY


# --- metadata ------------------------------------------------------------------------------------


def _metadata_of(headers: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the headers that fit into the metadata, and the names of the others."""
    kept: dict[str, Any] = {}
    left_out: list[str] = []
    size = 2
    ordered = sorted(headers.items(), key=lambda item: str(item[0]).lower() not in (TRACEPARENT, TRACESTATE))
    for given, value in ordered:
        name = _writable(str(given))
        if name.lower() in (TRACEPARENT, TRACESTATE):
            name = name.lower()
        elif name.lower() == CONTENT_TYPE or name.lower().startswith("nats-"):
            continue  # it has a place of its own, or is between its sender and the broker
        taken = _plain(value)
        try:
            needed = len(codec.encode_json({name: taken}, max_depth=16, what="header"))
        except InvalidPayload:
            needed = MAX_METADATA
        is_free = name not in RESERVED_METADATA and name != INGEST and len(kept) < MAX_METADATA_KEYS - 3
        if taken is _NOTHING or not is_free or size + needed > MAX_METADATA - ROOM:
            left_out.append(name)
            continue
        kept[name] = taken
        size += needed
    return kept, left_out


def plain_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers that JSON can hold."""
    found = {_writable(str(name)): _plain(value) for name, value in headers.items()}
    return {name: value for name, value in found.items() if value is not _NOTHING}


def _facts(
    foreign: Foreign, rules: Rules, topic: str, left_out: Sequence[str] = (), seq: int | None = None
) -> dict[str, Any]:
    """Return what the metadata says of an event's way in."""
    facts: dict[str, Any] = {"from": f"{rules.kind}:{rules.source}"[:120]}
    if topic != foreign.subject and len(foreign.subject) <= 120:
        facts["subject"] = _writable(foreign.subject)
    if seq is not None:
        facts["seq"] = seq
    if foreign.is_again and rules.identity == "delivery" and not foreign.given_id and foreign.place is None:
        facts["redelivered"] = True
    if left_out:
        named = [_writable(name)[:24] for name in left_out[:MOST_NAMED]]
        facts["left_out"] = named if len(left_out) <= MOST_NAMED else len(left_out)
    return facts


_NOTHING: Any = object()


def _plain(value: Any, depth: int = 8) -> Any:
    """Return the value of a header as JSON has it; `_NOTHING`: it has nothing like it."""
    if isinstance(value, str):
        return _writable(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _NOTHING
    if isinstance(value, bytes | bytearray):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            return _NOTHING
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    if depth and isinstance(value, Mapping):
        return _all_of({_writable(str(name)): _plain(each, depth - 1) for name, each in value.items()})
    if depth and isinstance(value, list | tuple):
        found = [_plain(each, depth - 1) for each in value]
        return _NOTHING if any(each is _NOTHING for each in found) else found
    return _NOTHING


def _all_of(values: dict[str, Any]) -> Any:
    return _NOTHING if any(value is _NOTHING for value in values.values()) else values


def _writable(text: str) -> str:
    """Return text that can be stored: lone surrogates escaped."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _with_facts(draft: Draft, foreign: Foreign, headers: Mapping[str, Any], rules: Rules) -> Draft:
    """Return the event of a CloudEvent with its topic by the rules, its trace and its way in, if there is room."""
    topic = _topic(rules, foreign, headers, draft.topic)
    own = {} if draft.metadata is None else codec.load_object(draft.metadata)
    if TRACEPARENT not in own:
        own = {name: value for name in (TRACEPARENT, TRACESTATE) if isinstance(value := headers.get(name), str)} | own
    return _checked(draft._replace(topic=topic), own, {INGEST: _facts(foreign, rules, topic)})


def _checked(draft: Draft, metadata: Mapping[str, Any], facts: Mapping[str, Any]) -> Draft:
    """Return a draft with metadata, and with the facts too if they fit."""
    try:
        text = codec.encode_metadata({**metadata, **facts})
    except InvalidEvent:
        text = codec.encode_metadata(metadata)
    return draft._replace(topic=check_topic(draft.topic), metadata=text)


# --- what other buses and CloudEvents say --------------------------------------------------------


def _relayed(
    foreign: Foreign,
    relayed: Relayed,
    content_type: str,
    headers: Mapping[str, Any],
    rules: Rules,
    settings: Settings,
) -> Draft:
    topic = _topic(rules, foreign, headers, relayed.topic)
    draft = make_draft(
        topic,
        foreign.body,
        key=relayed.key,
        message_id=relayed.message_id,
        content_type=content_type,
        max_payload=settings.max_payload,
        max_depth=settings.max_depth,
    )
    return _checked(draft, relayed.metadata, {INGEST: _facts(foreign, rules, topic, seq=relayed.seq)})


def _attributes_in(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a CloudEvent in binary mode."""
    found: dict[str, Any] = {}
    for name, value in headers.items():
        for prefix in CLOUDEVENT_PREFIXES:
            if name.startswith(prefix):
                plain = _plain(value)
                if plain is _NOTHING:
                    raise InvalidCloudEvent(name.removeprefix(prefix), f"the header {name} is no text")
                found[name.removeprefix(prefix)] = plain if isinstance(plain, bool | int) else str(plain)
    return found


def _cloudevents(
    foreign: Foreign, media_type: str, attributes: dict[str, Any], content_type: str, settings: Settings
) -> Iterable[Draft]:
    now = time.time_ns() // 1_000
    if media_type == cloudevents.STRUCTURED:
        return [cloudevents.parse_cloudevent(_json(foreign.body, settings), settings, now)]
    if media_type == cloudevents.BATCH:
        batch = _json(foreign.body, settings)
        if not isinstance(batch, list):
            raise InvalidCloudEvent("specversion", f"expected a JSON array of CloudEvents, got {type(batch).__name__}")
        return [cloudevents.parse_cloudevent(event, settings, now) for event in batch]
    attributes["datacontenttype"] = content_type
    return [cloudevents.draft_of(attributes, foreign.body if foreign.body else UNSET, settings, now)]


def _json(body: bytes, settings: Settings) -> Any:
    # An event in JSON, which may hold another; base64 makes a third more of a payload.
    return codec.parse_json(body, max_depth=settings.max_depth + 2)
