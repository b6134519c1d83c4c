"""How many connections one address and one principal may have open."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from eventbus_fastapi.client import ClientConfig, EventBusClient
from eventbus_fastapi.errors import TooManyConnections
from eventbus_fastapi.server.admission import Admission
from eventbus_fastapi.settings import Settings
from tests.security.guarded import ALICE, BOB, bearer, serving_guarded
from tests.server.sockets import IMPLEMENTATIONS, ServedBus, serving_bus
from tests.waiting import eventually


@pytest.fixture
def admission() -> Admission:
    return Admission(Settings(max_connections_per_address=2, max_connections_per_principal=2))


def test_an_address_has_as_many_seats_as_the_limit_says_and_no_more(admission: Admission) -> None:
    admission.admit("a")
    admission.admit("a")

    with pytest.raises(TooManyConnections) as refused:
        admission.admit("a")

    assert str(refused.value) == (
        "address 'a' has 2 open connections, which is the limit (EVENTBUS_MAX_CONNECTIONS_PER_ADDRESS)"
    )
    admission.admit("b")


def test_a_principal_has_as_many_seats_as_the_limit_says_whatever_its_addresses(admission: Admission) -> None:
    admission.admit("a", "ada")
    admission.admit("b", "ada")

    with pytest.raises(TooManyConnections, match=r"^principal 'ada' has 2 open .*_PER_PRINCIPAL\)$"):
        admission.admit("c", "ada")

    admission.admit("c", "bob")


def test_a_seat_is_free_again_when_its_block_ends(admission: Admission) -> None:
    for _ in range(5):
        with admission.admit("a", "ada") as seat, admission.admit("a", "ada"):
            seat.leave()
            seat.leave()  # once
    assert len(admission) == 0


def test_who_is_refused_holds_no_seat(admission: Admission) -> None:
    seats = [admission.admit(address, "ada") for address in "ab"]
    for _ in range(5):
        with pytest.raises(TooManyConnections):
            admission.admit("c", "ada")
    admission.admit("c").leave()
    for seat in seats:
        seat.leave()
    assert len(admission) == 0
    assert not admission._by_principal


def test_a_connection_that_says_later_who_it_is_is_counted_from_then_on(admission: Admission) -> None:
    seat, other = admission.admit("a"), admission.admit("b", "ada")
    seat.identify("ada")
    seat.identify("ada")  # once

    with pytest.raises(TooManyConnections):
        admission.admit("c", "ada")
    seat.identify("bob")
    admission.admit("c", "ada").leave()
    full = admission.admit("c", "ada")
    with pytest.raises(TooManyConnections):
        seat.identify("ada")

    for each in (seat, other, full):
        each.leave()
    assert len(admission) == 0
    assert not admission._by_principal


# --- on the WebSocket ----------------------------------------------------------------------------


async def _refusal(served: ServedBus, **options: object) -> httpx.Response:
    """Return the answer to a handshake."""
    with pytest.raises(InvalidStatus) as refused:
        async with served.v1(**options):
            pass
    answer = refused.value.response
    content = bytes(answer.body or b"")
    return httpx.Response(answer.status_code, headers=list(answer.headers.raw_items()), content=content)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
async def test_a_connection_too_many_is_refused_before_it_is_accepted(tmp_path: Path, implementation: str) -> None:
    async with serving_bus(tmp_path, server={"ws": implementation}, max_connections_per_address=2) as served:
        async with served.v1(), served.plain() as second:
            answer = await _refusal(served)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
            assert answer.headers["content-type"] == "application/problem+json"
            assert (answer.json()["code"], answer.json()["retry"]) == ("connection.too_many", True)

            await second.socket.close()
            await eventually(lambda: len(_admission(served)) == 1)
            async with served.v1() as again:
                await again.next_of("welcome")

        await eventually(lambda: len(_admission(served)) == 0)


async def test_an_address_made_up_in_a_header_has_no_effect_unless_the_server_trusts_the_proxy(tmp_path: Path) -> None:
    server = {"forwarded_allow_ips": "192.0.2.1"}
    async with serving_bus(tmp_path, server=server, max_connections_per_address=1) as served, served.v1():
        for number in range(3):
            answer = await _refusal(served, additional_headers={"X-Forwarded-For": f"198.51.100.{number}"})
            assert answer.status_code == 429
            assert "127.0.0.1" in answer.json()["message"]


async def test_behind_a_trusted_proxy_each_client_counts_for_itself(tmp_path: Path) -> None:
    server = {"forwarded_allow_ips": "127.0.0.1"}
    one, other = {"X-Forwarded-For": "198.51.100.1"}, {"X-Forwarded-For": "198.51.100.2"}
    async with (
        serving_bus(tmp_path, server=server, max_connections_per_address=1) as served,
        served.v1(additional_headers=one),
        served.v1(additional_headers=other),
    ):
        answer = await _refusal(served, additional_headers=one)
        assert answer.status_code == 429
        assert "198.51.100.1" in answer.json()["message"]


async def test_a_handshake_that_fails_for_another_reason_leaves_its_seat(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, max_connections_per_address=1) as served:
        for _ in range(3):
            with pytest.raises(InvalidStatus, match="400"):
                async with connect(served.served.ws, subprotocols=[Subprotocol("mqtt")]):
                    pass
        async with served.v1() as client:
            await client.next_of("welcome")


def _admission(served: ServedBus) -> Admission:
    return served.bus._limits.admission


async def test_our_client_comes_back_when_it_was_told_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving_bus(tmp_path, max_connections_per_address=1) as served, served.v1() as first:
        config = ClientConfig(url=served.served.ws, proxy=None, reconnect_interval=0.01, max_reconnect_interval=0.3)
        async with EventBusClient(config) as client:
            publishing = asyncio.create_task(client.publish("a", 1))
            await eventually(lambda: "HTTP 429" in caplog.text)
            await first.socket.close()

            assert (await publishing).seq == 1

    told = [record for record in caplog.records if "next attempt" in record.msg]
    pauses = [float(str(record.args[-1])) for record in told if isinstance(record.args, tuple)]
    assert pauses
    assert all(pause >= 0.3 for pause in pauses)  # of the 5 seconds that it was told


# --- of principals -------------------------------------------------------------------------------


async def test_a_principal_that_has_its_connections_is_refused_and_others_are_not(tmp_path: Path) -> None:
    alice, bob = bearer(ALICE), bearer(BOB)
    async with (
        serving_guarded(tmp_path, max_connections_per_principal=1) as served,
        served.v1(additional_headers=alice),
    ):
        answer = await _refusal(served, additional_headers=alice)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
        assert answer.json()["message"].startswith("principal 'alice' has 1 open connections")
        async with served.v1(additional_headers=bob) as other:
            await other.next_of("welcome")


async def test_a_principal_that_publishes_too_fast_is_refused_on_every_way_and_others_are_not(tmp_path: Path) -> None:
    async with (
        serving_guarded(tmp_path, publish_rate=0.01, publish_burst=1) as served,
        httpx.AsyncClient(base_url=served.served.http) as http,
        served.v1(additional_headers=bearer(ALICE)) as alice,
    ):
        event, other = {"topic": "a.x", "payload": 1}, {"topic": "b.x", "payload": 1}
        assert (await http.post("/publish", json=event, headers=bearer(ALICE))).status_code == 201

        assert (await http.post("/publish", json=event, headers=bearer(ALICE))).status_code == 429
        await alice.send("publish", id=1, data=event)
        assert (await alice.next_of("error"))["error"]["code"] == "publish.too_fast"
        assert (await http.post("/publish", json=other, headers=bearer(BOB))).status_code == 201


# --- on streams ----------------------------------------------------------------------------------


async def test_a_stream_is_a_connection(tmp_path: Path) -> None:
    async with (
        serving_bus(tmp_path, max_connections_per_address=2) as served,
        httpx.AsyncClient(base_url=served.served.http) as http,
        served.v1(),
    ):
        async with http.stream("GET", "/events/stream") as first:
            assert first.status_code == 200
            answer = await http.get("/events/stream")
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
            assert answer.json()["code"] == "connection.too_many"
            assert (await http.get("/events")).status_code == 200  # an ordinary request is none

        await eventually(lambda: len(_admission(served)) == 1)
