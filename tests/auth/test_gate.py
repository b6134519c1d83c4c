"""The gate: whatever `authenticate` does, it lets in whom it names and nobody else."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from eventbus_fastapi.auth import EVERYONE, Gate, Principal, principal_of
from eventbus_fastapi.auth.tickets import LIFETIME, MOST, Tickets
from eventbus_fastapi.errors import (
    CredentialsExpired,
    EventBusError,
    Forbidden,
    OriginForbidden,
    SettingsError,
    StoreUnavailable,
    Unauthenticated,
)
from tests.auth.connections import handshake, request

ALICE = Principal("alice")
SECRET = "tok-secret-1234567890"


def answering(answer: Any) -> Any:
    def authenticate(connection: HTTPConnection) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return authenticate


async def test_without_authenticate_everybody_may_do_everything() -> None:
    connection = handshake()
    assert await Gate().admit(connection) is EVERYONE
    assert principal_of(connection) is EVERYONE
    assert EVERYONE.may_subscribe("#")
    assert EVERYONE.is_admin


async def test_pages_are_asked_for_their_origin_also_where_nobody_is_asked_who_they_are() -> None:
    with pytest.raises(OriginForbidden):
        await Gate().admit(handshake(("origin", "https://evil.example")))


async def test_who_was_let_in_is_known_from_then_on() -> None:
    connection = request()
    assert await Gate(answering(ALICE)).admit(connection) is ALICE
    assert principal_of(connection) is ALICE


async def test_a_route_without_a_gate_knows_nobody() -> None:
    with pytest.raises(EventBusError, match="no gate"):
        principal_of(request())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (None, Unauthenticated),
        (Unauthenticated("no"), Unauthenticated),
        (Forbidden("no"), Forbidden),
        (HTTPException(403), HTTPException),
        (StoreUnavailable("the sessions are away"), StoreUnavailable),
        (Principal("old", expires_at=datetime.now(UTC) - timedelta(seconds=1)), CredentialsExpired),
    ],
)
async def test_whom_authenticate_does_not_know_it_turns_away(answer: Any, expected: type[Exception]) -> None:
    with pytest.raises(expected):
        await Gate(answering(answer)).admit(request())


@pytest.mark.parametrize("answer", [KeyError(SECRET), ValueError(SECRET), SettingsError(SECRET), SECRET, True, {}, 1])
async def test_a_fault_of_authenticate_lets_nobody_in_and_its_text_stays_where_it_is(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(EventBusError) as refused:
        await Gate(answering(answer)).admit(request())
    assert type(refused.value) is EventBusError
    assert SECRET not in str(refused.value) + caplog.text
    assert "authenticate failed: " in caplog.text
    assert refused.value.__suppress_context__


@pytest.mark.parametrize("wrong", [5, "token", Principal, ALICE])
def test_what_cannot_say_who_asks_is_refused_at_the_start(wrong: Any) -> None:
    with pytest.raises(SettingsError, match="authenticate: expected"):
        Gate(wrong)


# --- tickets -------------------------------------------------------------------------------------


def clock_of(times: list[float]) -> Any:
    return lambda: times[0]


async def test_a_ticket_stands_for_its_principal_once() -> None:
    gate = Gate(answering(None), tickets=True)
    ticket = gate.give_ticket(ALICE)
    assert len(ticket) >= 22, "128 bits"
    assert await gate.admit(handshake(query=f"ticket={ticket}")) is ALICE
    for connection in (handshake(query=f"ticket={ticket}"), request(query="ticket=x"), request(query="ticket=")):
        with pytest.raises(Unauthenticated, match="ticket"):
            await gate.admit(connection)


async def test_a_ticket_changes_nothing() -> None:
    gate = Gate(answering(None), tickets=True)
    for method in ("POST", "PUT", "DELETE"):
        with pytest.raises(Unauthenticated):
            await gate.admit(request(query=f"ticket={gate.give_ticket(ALICE)}", method=method))


async def test_who_came_with_a_ticket_may_be_asked_again() -> None:
    gate = Gate(answering(None), tickets=True)
    connection = handshake(query=f"ticket={gate.give_ticket(ALICE)}")
    await gate.admit(connection)
    assert await gate.identify(connection) is ALICE


def test_a_ticket_is_good_for_half_a_minute() -> None:
    times = [0.0]
    tickets = Tickets(clock_of(times))
    ticket, late = tickets.give(ALICE), tickets.give(ALICE)
    times[0] = LIFETIME - 0.001
    assert tickets.take(ticket) is ALICE
    times[0] = LIFETIME
    with pytest.raises(Unauthenticated):
        tickets.take(late)
    assert len(tickets) == 0


def test_tickets_that_nobody_uses_take_a_bounded_place() -> None:
    tickets = Tickets()
    for _ in range(MOST + 10):
        tickets.give(ALICE)
    assert len(tickets) <= MOST


def test_who_wants_ever_more_tickets_takes_none_of_another() -> None:
    tickets = Tickets(lambda: 0.0)
    bobs = tickets.give(Principal("bob"))

    first, *_, last = (tickets.give(ALICE) for _ in range(MOST + 1))

    assert tickets.take(bobs).name == "bob"
    assert tickets.take(last) is ALICE
    with pytest.raises(Unauthenticated):
        tickets.take(first)
