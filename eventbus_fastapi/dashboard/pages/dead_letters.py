"""Dead letters: found by filter, shown with all that went wrong, tried again or discarded, one or many."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Response

from eventbus_fastapi.dashboard.forms import Fields
from eventbus_fastapi.dashboard.pages.content import content_of
from eventbus_fastapi.dashboard.visit import Visit
from eventbus_fastapi.errors import EventBusError, InvalidRequest, quote
from eventbus_fastapi.pipeline.filters import dead_filter
from eventbus_fastapi.pipeline.steward import LARGEST_MAX_ATTEMPTS, Steward
from eventbus_fastapi.protocol.commands import MAX_PATTERNS
from eventbus_fastapi.protocol.fields import MAX_SEQ
from eventbus_fastapi.store.dead_letters import Changed, DeadFilter
from eventbus_fastapi.store.group_name import check_group_name

ROWS = 50
FILTERS = ("group", "pattern", "error", "died_after", "died_before", "attempts", "tag", "after")
_SEQ = re.compile(r"[0-9]{1,19}")
SURE = "discarded dead letters are gone for good"


async def show(visit: Visit, error: EventBusError | None = None, more: dict[str, Any] | None = None) -> Response:
    steward = visit.node.steward
    fields = visit.query if visit.request.method == "GET" else visit.form
    page = None
    try:
        if error is None or "of" not in visit.form.as_typed():
            page = await steward.dead_letters(
                _group(fields), _filter(fields), after=fields.integer("after") or 0, limit=ROWS
            )
    except EventBusError as exc:
        error = error or exc
    typed = fields.as_typed()
    groups = [(each.name, figures.dead) for each, figures in await steward.groups()]
    return visit.show(
        "dead_letters.html",
        error=error,
        letters=page,
        groups=[each for each in groups if each[1] or each[0] == typed.get("group")],
        total=sum(dead for _, dead in groups),
        typed=typed,
        search={name: typed.get(name) for name in FILTERS if name != "after"},
        is_filtered=any(typed.get(name) for name in FILTERS if name not in ("after", "group")),
        more=more,
    )


async def show_one(visit: Visit) -> Response:
    group, seq = check_group_name(visit.query.required("group")), visit.query.integer("seq", 1)
    if seq is None:
        raise InvalidRequest("expected the seq of a dead letter")
    letter = await visit.node.steward.dead_letter(group, seq)
    return visit.show(
        "dead_letter.html",
        group=group,
        letter=letter,
        errors=list(reversed(letter.errors)),
        **content_of(visit, letter.message),
    )


# --- those that were chosen ---


async def retry(visit: Visit) -> Response:
    return await _change_chosen(visit, Steward.retry, "retried")


async def discard(visit: Visit) -> Response:
    return await _if_sure(visit) or await _change_chosen(visit, Steward.discard, "discarded")


async def _change_chosen(
    visit: Visit, change: Callable[[Steward, str, list[int]], Awaitable[int]], done: str
) -> Response:
    steward, chosen, count = visit.node.steward, _chosen(visit.form), 0
    for group in chosen:
        await steward.group(group)  # one that is gone is said before anything is changed in the others
    for group, seqs in chosen.items():
        count += await change(steward, group, seqs)
    return visit.go("dead-letters", done, count)


def _chosen(form: Fields) -> dict[str, list[int]]:
    """Return the seqs by group: each box has `seq@group` as its value."""
    chosen: dict[str, list[int]] = {}
    for value in form.all("of"):
        seq, at, group = value.partition("@")
        if not at or not _SEQ.fullmatch(seq) or not 1 <= int(seq) <= MAX_SEQ:
            raise InvalidRequest(f"field 'of': expected a seq and a group, like 17@mail, got {quote(value)}")
        chosen.setdefault(check_group_name(group), []).append(int(seq))
    if not chosen:
        raise InvalidRequest("choose at least one dead letter")
    return chosen


# --- all that a filter means ---


async def retry_all(visit: Visit) -> Response:
    return await _change_all(visit, Steward.retry_matching, "retried")


async def discard_all(visit: Visit) -> Response:
    return await _if_sure(visit) or await _change_all(visit, Steward.discard_matching, "discarded")


async def _if_sure(visit: Visit) -> Response | None:
    """Return the page that asks for it, where it was not said; None: it was."""
    try:
        visit.form.require_yes("sure", SURE)
    except InvalidRequest as exc:
        return await show(visit, exc)
    return None


async def _change_all(visit: Visit, change: Callable[..., Awaitable[Changed]], done: str) -> Response:
    form = visit.form
    try:
        group = _group(form)
        if group is None:
            raise InvalidRequest("field 'group' is empty: choose a group first")
        changed = await change(visit.node.steward, group, _filter(form), after=form.integer("after") or 0)
    except EventBusError as exc:
        return await show(visit, exc)
    if changed.next is not None:
        return await show(visit, more={"done": done, "count": changed.done, "after": changed.next})
    return visit.go("dead-letters", done, changed.done, group=group)


def _group(fields: Fields) -> str | None:
    name = fields.text("group")
    return None if name is None else check_group_name(name)


def _filter(fields: Fields) -> DeadFilter:
    patterns = (fields.text("pattern") or "").split()
    if len(patterns) > MAX_PATTERNS:
        raise InvalidRequest(f"expected at most {MAX_PATTERNS} patterns, got {len(patterns):,}")
    return dead_filter(
        *patterns,
        error=fields.text("error"),
        died_after=fields.time("died_after"),
        died_before=fields.time("died_before"),
        attempts=fields.integer("attempts", 0, LARGEST_MAX_ATTEMPTS) or 0,
        tags=(fields.text("tag") or "").split(),
    )
