"""Groups: how far behind they are, what is in flight, waits and died; and one of them: pause, resume, reset."""

from __future__ import annotations

from typing import cast

from fastapi import Response

from eventbus_fastapi.dashboard.pages.paging import page_of
from eventbus_fastapi.dashboard.visit import Visit
from eventbus_fastapi.errors import EventBusError, GroupNotFound, InvalidRequest
from eventbus_fastapi.pipeline.start import Start
from eventbus_fastapi.store.group_name import check_group_name

ROWS = 50
KEYS = 20
STARTS = ("now", "earliest", "seq", "time")


async def show(visit: Visit) -> Response:
    typed = visit.query.as_typed()
    wanted = typed.get("name", "").strip()
    found = [each for each in await visit.node.steward.groups() if wanted in each.group.name]
    return visit.show("groups.html", groups=page_of(found, visit.query), typed=typed, search={"name": wanted})


async def show_group(visit: Visit, error: EventBusError | None = None) -> Response:
    fields = visit.query if error is None else visit.form
    steward = visit.node.steward
    group, figures = await steward.group(check_group_name(fields.required("name")))
    after = visit.query.integer("after") or 0
    retries = await steward.retries(group.name, after=after, limit=ROWS + 1)
    return visit.show(
        "group.html",
        error=error,
        group=group,
        figures=figures,
        head=await visit.node.head(),
        retries=retries[:ROWS],
        next_retries=retries[ROWS - 1].seq if len(retries) > ROWS else None,
        after=after,
        keys=await steward.blocked_keys(group.name, limit=KEYS),
        typed=visit.form.as_typed(),
    )


async def pause(visit: Visit) -> Response:
    name = _name(visit)
    await visit.node.steward.pause(name)
    return visit.go("group", "paused", name=name)


async def resume(visit: Visit) -> Response:
    name = _name(visit)
    await visit.node.steward.resume(name)
    return visit.go("group", "resumed", name=name)


async def reset(visit: Visit) -> Response:
    name = _name(visit)
    try:
        start = _start(visit)
        visit.form.require_yes("sure", "what is in flight or waits for another attempt is forgotten")
        after = await visit.node.steward.reset(name, start)
    except GroupNotFound:
        raise
    except EventBusError as exc:
        return await show_group(visit, exc)
    return visit.go("group", "reset", after, name=name)


def _start(visit: Visit) -> Start:
    form = visit.form
    match form.choice("start", STARTS):
        case "now" | "earliest" as start:
            return cast(Start, start)
        case "seq":
            seq = form.integer("seq", 0)
            if seq is None:
                raise InvalidRequest("field 'seq' is empty: after which event shall the group read?")
            return seq
        case "time":
            time = form.time("time")
            if time is None:
                raise InvalidRequest("field 'time' is empty: from when on shall the group read?")
            return time
        case _:
            raise InvalidRequest("choose where the group shall read on")


def _name(visit: Visit) -> str:
    return check_group_name(visit.form.required("name"))
