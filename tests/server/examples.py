"""What the examples of the OpenAPI document speak of, in a bus: a group with all that a group may have."""

from __future__ import annotations

import contextlib

from eventbus_fastapi import EventBus
from eventbus_fastapi.errors import GroupNotFound
from eventbus_fastapi.store.group import Again, Death, Ending, Settlement

GROUP = "shop.send_welcome"
"""The group of the examples."""
RECURRING = "nightly-report"
"""The recurring event of the examples."""


async def prepare(eventbus: EventBus) -> None:
    """Have some events, and a group with all that a group may have: an event that waits, and one that died."""
    await eventbus.publish_many([("user.created", {"id": 1}), ("chat.user1", "Hello"), ("image.added", b"\x89PNG")])
    await eventbus.recurring.declare(RECURRING, "@daily", "report.requested", {"kind": "sales"})
    groups = eventbus.node.store.groups
    with contextlib.suppress(GroupNotFound):
        await groups.delete(GROUP)
    group = await groups.ensure(GROUP, ["#"], after=0, ordered_by="key", archive="all")
    messages = (await eventbus.node.store.read(0, 3)).messages
    claim = await groups.claim(group, messages, up_to=3, owner="one", lease=60)
    assert claim is not None
    error = {"attempt": 1, "type": "httpx.ConnectError", "message": "no", "time": 1, "node": "n", "traceback": "…"}
    again, dead = [Again(2, 1, 60_000_000, [error])], [Death(1, 1, [error])]
    endings = [
        Ending(messages[0], "dead", 1, None, "one", [error]),
        Ending(messages[2], "acked", 1, 250_000, "one", []),
    ]
    settled = Settlement(group.id, claim.token, done=[3], again=again, dead=dead, pending=(), endings=endings)
    await groups.settle([settled])
