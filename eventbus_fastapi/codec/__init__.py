"""Payloads, metadata and ids between Python and what is stored: bytes with a content type, JSON text, UUIDs.

    content_type    what the bytes are
    payload         a payload as bytes, and back
    json            JSON that every database can hold and every parser reads the same
    refusal         why a value is not such JSON, and where
    metadata        what a publisher attaches
    tags            the words among it
    message_id      the ids of events

What is accepted here is read back as the same value: UTF-8, no NaN or infinity, no lone surrogate, bounded depth. A
refusal is an `InvalidPayload` (or `InvalidEvent`) that says what was wrong; foreign input raises nothing else. Sizes of
payloads, and topics, are not judged here.
"""

from eventbus_fastapi.codec.content_type import BINARY, JSON, TEXT, check_content_type, is_json, is_text
from eventbus_fastapi.codec.json import encode_json, load_object, parse_json
from eventbus_fastapi.codec.message_id import check_message_id, derived_message_id, new_message_id
from eventbus_fastapi.codec.metadata import encode_metadata
from eventbus_fastapi.codec.payload import decode, decode_as, encode
from eventbus_fastapi.codec.tags import MAX_TAGS, add_tags, check_tag, tags_of

__all__ = [
    "BINARY",
    "JSON",
    "MAX_TAGS",
    "TEXT",
    "add_tags",
    "check_content_type",
    "check_message_id",
    "check_tag",
    "decode",
    "decode_as",
    "derived_message_id",
    "encode",
    "encode_json",
    "encode_metadata",
    "is_json",
    "is_text",
    "load_object",
    "new_message_id",
    "parse_json",
    "tags_of",
]
