"""Outboxes in databases that are not the bus's, and what carries their events to a bus that can reach them."""

from eventbus_fastapi.outbox.forwarding import Forwarding
from eventbus_fastapi.outbox.outbox import Outbox

__all__ = ["Forwarding", "Outbox"]
