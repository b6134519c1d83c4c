"""A bus that has something to show: events, groups that are behind, retries, dead letters, queues, schedules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eventbus_fastapi import EventBus
from eventbus_fastapi.events import Message, make_draft
from eventbus_fastapi.store.group import Again, Death, Ending, Group, Settlement
from eventbus_fastapi.store.roster import Serving

TOPICS = ("user.created", "user.renamed", "order.placed", "order.paid", "order.shipped", "mail.sent", "audit.login")
GROUPS = (
    ("shop.send_welcome", ["user.created"]),
    ("shop.charge", ["order.placed"]),
    ("shop.ship_order", ["order.paid"]),
    ("search.index", ["user.#", "order.#"]),
    ("reports.revenue", ["order.*"]),
    ("audit-trail", ["#"]),
)
BATCH = 1_000
ERRORS = (
    ("httpx.ConnectTimeout", "mail.example: no answer within 5 s"),
    ("shop.errors.CardDeclined", "the card of customer 4711 was declined"),
    ("ValueError", "amount must be positive, got -3"),
)
TRACEBACK = """Traceback (most recent call last):
  File "/app/shop/mail.py", line 42, in send_welcome
    await client.post(url, json=letter)
  File "/app/shop/client.py", line 17, in post
    raise ConnectTimeout(f"{self.host}: no answer within {self.timeout} s")
httpx.ConnectTimeout: mail.example: no answer within 5 s
"""


def event_of(number: int) -> dict[str, Any]:
    """Return the payload of one event."""
    return {"id": number, "name": f"customer {number % 977}", "amount": round(number % 311 * 1.37, 2), "ok": True}


def errors_of(number: int, now: int, attempts: int) -> list[dict[str, Any]]:
    """Return what went wrong in some attempts, as the store keeps it."""
    kind, message = ERRORS[number % len(ERRORS)]
    return [
        {
            "type": kind,
            "message": message,
            "traceback": TRACEBACK if attempt == attempts else "",
            "time": now - (attempts - attempt) * 60_000_000,
            "node": "worker-1-4711-0a1b2c3d",
            "attempt": attempt,
        }
        for attempt in range(1, attempts + 1)
    ]


async def fill_log(bus: EventBus, events: int) -> None:
    """Append so many events, in the order of their numbers."""
    for start in range(0, events, BATCH):
        await bus.node.store.append(
            [
                make_draft(
                    TOPICS[number * 31 % 101 % len(TOPICS)],
                    event_of(number),
                    key=f"customer-{number % 977}",
                    metadata={"source": "shop"},
                    max_payload=10_000,
                )
                for number in range(start + 1, min(start + BATCH, events) + 1)
            ]
        )


async def add_group(
    bus: EventBus, name: str, patterns: Sequence[str], *, after: int, dead: int = 0, again: int = 0, held: int = 0
) -> Group:
    """Make a group that has read up to a place, where so many events died, wait for another attempt, and are held.

    Some of what it acked is in its archive.
    """
    store = bus.node.store
    group = await store.groups.ensure(name, patterns, after=after, archive="all")
    while dead + again + held > 0:
        messages = (await store.read(group.cursor, min(BATCH, dead + again + held + 5))).messages
        claimed = await store.groups.claim(group, messages, up_to=messages[-1].seq, owner="worker-1", lease=3_600)
        assert claimed is not None
        now = await store.now()
        died, rest = messages[: min(dead, len(messages))], messages[min(dead, len(messages)) :]
        waiting, rest = rest[:again], rest[again:]
        kept, acked = rest[:held], rest[held:]
        await store.groups.settle(
            [
                Settlement(
                    group.id,
                    claimed.token,
                    done=[message.seq for message in acked],
                    again=[
                        Again(message.seq, 2, 45_000_000 + 10_000_000 * place, errors_of(message.seq, now, 2))
                        for place, message in enumerate(waiting)
                    ],
                    dead=[Death(message.seq, 3, errors_of(message.seq, now, 3)) for message in died],
                    pending=[message.seq for message in kept],
                    endings=[*(_ending(each, now) for each in acked), *(_ending(each, now, 3) for each in died)],
                )
            ]
        )
        dead, again, held = dead - len(died), again - len(waiting), held - len(kept)
        group = await store.groups.get(name)
    return group


def _ending(message: Message, now: int, attempts: int = 1) -> Ending:
    errors = [] if attempts == 1 else errors_of(message.seq, now, attempts)
    duration = 12_000 + message.seq % 90_000
    return Ending(message, "dead" if errors else "acked", attempts, duration, "worker-1-4711-0a1b2c3d", errors)


async def show_off(bus: EventBus, *, events: int = 2_400) -> None:
    """Have something on every page."""
    await fill_log(bus, events)
    steward = bus.groups
    await steward.set_rate_limit("mail-provider", 50, 60)
    await steward.set_rate_limit("card-provider", 5, 1)
    await add_group(bus, *GROUPS[0], after=events - 60, dead=7, again=4)
    await add_group(bus, *GROUPS[1], after=events - 40, dead=3, again=2, held=4)
    await add_group(bus, *GROUPS[2], after=events)
    await add_group(bus, *GROUPS[3], after=events - 1_350, held=24)
    await add_group(bus, *GROUPS[4], after=events - 310)
    await add_group(bus, *GROUPS[5], after=events)
    await steward.pause("reports.revenue")
    await steward.declare("shop.charge", ["order.placed"], rate_limit="card-provider", archive="all", max_in_flight=20)
    await bus.recurring.declare(
        "nightly-report", "0 3 * * *", "report.wanted", {"kind": "sales"}, timezone="Europe/Berlin"
    )
    await bus.recurring.declare("heartbeat", "*/5 * * * *", "system.heartbeat", None)
    await bus.recurring.pause("heartbeat")
    await bus.queues.pause("reports")
    roster = bus.node.store.roster
    serving = {
        "email": Serving(10, 3, False, ("shop.send_welcome",)),
        "payments": Serving(4, 4, False, ("shop.charge", "shop.ship_order")),
        "reports": Serving(2, 0, True, ("reports.revenue",)),
    }
    for number in (1, 2):
        await roster.see(
            f"worker-{number}-47{number}1-0a1b2c3d", serving, host=f"worker-{number}", pid=471 + number, age=8_000
        )
    await bus.queues.scale("email", 10)
    note = "<script>alert('shown as text')</script>"
    await bus.publish("user.created", {"id": 90, "name": "Ada", "note": note}, key="customer-90", tags=["vip"])
