"""What JSON Schema cannot say of our requests, for schemathesis: what is a cron expression, and how long is a byte.

`schemathesis.toml` names this module, so `st run http://127.0.0.1:3000/openapi.json` in the checkout uses it, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import schemathesis
from hypothesis import strategies as st
from schemathesis import HookContext

KEY = "Idempotency-Key"
MOST_BYTES = {"group": 255, "key": 255, "name": 255, "rate_limit": 255, "tag": 64, "tags": 64, "subject": 255}

schemathesis.openapi.format("cron", st.sampled_from(["@daily", "*/5 * * * *", "0 3 * * mon-fri", "59 23 31 12 *"]))
schemathesis.openapi.format("time-zone", st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata"]))


@schemathesis.hook
def filter_path_parameters(context: HookContext, path_parameters: Any) -> bool:
    return _is_short(path_parameters)


@schemathesis.hook
def filter_query(context: HookContext, query: Any) -> bool:
    return _is_short(query)


@schemathesis.hook
def filter_body(context: HookContext, body: Any) -> bool:
    parts = body if isinstance(body, list) else [body]
    return all(_has_what_it_is_unique_by(part) and _is_short(part) and _is_short(_of(part, "filter")) for part in parts)


def _is_short(part: object) -> bool:
    """Say whether no word is longer than its bytes allow."""
    return all(_longest(_of(part, name)) <= most for name, most in MOST_BYTES.items())


def _longest(value: object) -> int:
    if isinstance(value, list):
        return max(map(_longest, value), default=0)
    return len(value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else 0


def _has_what_it_is_unique_by(event: object) -> bool:
    unique = _of(event, "unique")
    return _has(_of(event, "payload"), _of(unique, "fields")) and _has(_of(event, "metadata"), _of(unique, "metadata"))


def _has(where: object, names: object) -> bool:
    if not isinstance(names, list) or not names:
        return True
    return isinstance(where, dict) and all(isinstance(name, str) and name in where for name in names)


def _of(part: object, name: str) -> object:
    return part.get(name) if isinstance(part, Mapping) else None


@schemathesis.hook
def before_call(context: HookContext, case: Any, kwargs: Any) -> None:
    """Give each request a key of its own: with the same one, another body is refused. None where there may be none."""
    headers = case.headers or {}
    if not re.fullmatch(r"[!#-~]{1,255}", str(headers.get(KEY, ""))):
        return  # none, or one that is to be refused
    events = case.body if isinstance(case.body, list) else [case.body]
    has_ids = any(_of(event, "message_id") is not None or _of(event, "durable") is False for event in events)
    if has_ids or case.media_type != "application/json":
        del headers[KEY]
    else:
        headers[KEY] = str(uuid4())
