"""`POST /tickets`: what stands for a token in a URL, once. The route is there only where `Settings.tickets` is on."""

# Annotations are evaluated here: FastAPI reads those of the endpoints.
from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from eventbus_fastapi.auth import Gate
from eventbus_fastapi.auth.tickets import LIFETIME
from eventbus_fastapi.server.bodies import json_answer
from eventbus_fastapi.server.guard import Caller
from eventbus_fastapi.server.openapi import examples_of


class Ticket(BaseModel):
    """A ticket."""

    model_config = ConfigDict(
        json_schema_extra=examples_of({"ticket": "3q2-7wAAAAAAAAAAAAAAAAAAAAAAAAAA", "expires_in": 30})
    )

    ticket: str = Field(description="To be used once, as `?ticket=…`.")
    expires_in: float = Field(description="Seconds in which it must be used.")


class TicketEndpoints:
    """The endpoint that gives tickets."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def give_ticket(self, caller: Caller) -> Response:
        """Get a ticket for one request of the same principal to the same node, for clients that can send no header."""
        ticket = self._gate.give_ticket(caller)
        return json_answer(to_json({"ticket": ticket, "expires_in": LIFETIME}), 201)
