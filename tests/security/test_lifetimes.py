"""What happens to an open connection when its principal changes: another token, other grants, the end of its time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import HTTPConnection
from websockets.exceptions import InvalidStatus

from eventbus_fastapi.auth import Principal, bearer_token
from tests.security.guarded import bearer, serving_guarded
from tests.server.sockets import PATIENCE, V1, ServedBus, peer
from tests.waiting import eventually


class Accounts:
    """Tokens whose principals a test may change."""

    def __init__(self) -> None:
        self.known: dict[str, Principal] = {"t1": Principal("alice", subscribe=["a.#", "b.#"], groups=["g"])}
        self.lasting: dict[str, float] = {}
        self.asked = 0

    async def __call__(self, connection: HTTPConnection) -> Principal | None:
        self.asked += 1
        token = bearer_token(connection) or ""
        if token in self.lasting:
            end = datetime.now(UTC) + timedelta(seconds=self.lasting.pop(token))
            self.known[token] = self.known[token].until(end)
        return self.known.get(token)

    def let_last(self, token: str, seconds: float) -> None:
        """Let a token end so long after its first use: a slow machine comes in time for that."""
        self.lasting[token] = seconds


@pytest.fixture
def accounts() -> Accounts:
    return Accounts()


@pytest.fixture
async def served(tmp_path: Path, accounts: Accounts) -> AsyncIterator[ServedBus]:
    async with serving_guarded(tmp_path, accounts, recheck_interval=0.1) as served:
        yield served


@pytest.fixture
async def unchecked(tmp_path: Path, accounts: Accounts) -> AsyncIterator[ServedBus]:
    """One that asks again after an hour only."""
    async with serving_guarded(tmp_path, accounts, recheck_interval=3_600) as served:
        yield served


# --- the end of its time -------------------------------------------------------------------------


@pytest.mark.parametrize("subprotocols", [["eventbus.v1"], None])
async def test_an_expired_token_ends_the_connection_and_nothing_is_delivered_after_that(
    unchecked: ServedBus, accounts: Accounts, subprotocols: Any
) -> None:
    accounts.let_last("t1", 2)
    connecting = unchecked.v1 if subprotocols else unchecked.plain
    async with connecting(additional_headers=bearer("t1")) as alice:
        await alice.send("subscribe", id=1, pattern="a.#")

        async def publish() -> None:
            while True:
                await unchecked.bus.publish("a.x", datetime.now(UTC).timestamp())
                await asyncio.sleep(0.02)

        publishing = asyncio.create_task(publish())
        frames, code = await alice.rest()
        publishing.cancel()

    assert code == 4401
    end = accounts.known["t1"].expires_at
    assert end is not None
    sent = [frame["payload"] for frame in frames if "payload" in frame]
    assert sent
    assert max(sent) <= end.timestamp()
    if subprotocols:
        assert frames[-1]["type"] == "bye"
        assert (frames[-1]["error"]["code"], frames[-1]["reconnect"]) == ("auth.expired", True)


async def test_an_expired_token_ends_a_stream(unchecked: ServedBus, accounts: Accounts) -> None:
    accounts.let_last("t1", 1)
    url = f"{unchecked.served.http}/events/stream?pattern=a.x"
    async with (
        httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as http,
        http.stream("GET", url, headers=bearer("t1")) as answer,
    ):
        text = "".join([part async for part in answer.aiter_text()])
    assert "event: bye" in text
    assert "auth.expired" in text


async def test_a_connection_is_told_how_long_its_token_lasts(unchecked: ServedBus, accounts: Accounts) -> None:
    accounts.let_last("t1", 100)
    async with unchecked.v1(additional_headers=bearer("t1")) as alice:
        welcome = await alice.next()
        assert welcome["principal"] == "alice"
        assert 90 < welcome["expires_in"] <= 100


# --- another token -------------------------------------------------------------------------------


async def test_a_token_that_is_renewed_in_time_keeps_the_connection(unchecked: ServedBus, accounts: Accounts) -> None:
    accounts.known["t2"] = accounts.known["t1"]
    accounts.let_last("t1", 2)
    async with unchecked.v1(additional_headers=bearer("t1")) as alice:
        await alice.next_of("welcome")
        await alice.ask("subscribe", id=1, pattern="a.x")
        renewed = await alice.ask("auth", id=2, token="t2")
        while renewed["type"] != "ok":
            renewed = await alice.next()
        assert (renewed["id"], renewed["principal"], "expires_in" in renewed) == (2, "alice", False)
        await asyncio.sleep(2.1)  # the first token is over by now: that is what this test is about
        await unchecked.bus.publish("a.x", 1)
        assert (await alice.next_of("event"))["payload"] == 1


async def test_a_token_with_fewer_grants_ends_what_it_does_not_cover_and_nothing_else(
    unchecked: ServedBus, accounts: Accounts
) -> None:
    accounts.known["t2"] = Principal("alice", subscribe=["b.#"])
    async with unchecked.v1(additional_headers=bearer("t1")) as alice:
        await alice.next_of("welcome")
        for sub, pattern, more in ((1, "a.x", {}), (2, "b.x", {}), (3, "b.y", {"group": "g"})):
            await alice.send("subscribe", id=sub, sub=sub, pattern=pattern, **more)
        for _ in range(3):
            await alice.next_of("ok")
        await alice.send("auth", id=4, token="t2")
        closed = [await alice.next_of("closed"), await alice.next_of("closed")]
        assert {frame["sub"] for frame in closed} == {1, 3}
        assert {frame["error"]["code"] for frame in closed} == {"auth.forbidden"}
        assert (await alice.next_of("ok"))["id"] == 4
        await unchecked.bus.publish("a.x", "not hers any more")
        await unchecked.bus.publish("b.x", "still hers")
        assert (await alice.next_of("event"))["payload"] == "still hers"
        refused = await alice.ask("subscribe", id=5, pattern="a.x")
        assert refused["error"]["code"] == "auth.forbidden"


async def test_a_plain_client_with_fewer_grants_is_closed(unchecked: ServedBus, accounts: Accounts) -> None:
    accounts.known["t2"] = Principal("alice")
    async with unchecked.plain(additional_headers=bearer("t1")) as alice:
        await alice.ask("subscribe", id=1, pattern="a.x")
        await alice.send("auth", token="t2")
        assert (await alice.rest())[1] == 4403


async def test_a_token_that_is_of_no_use_changes_nothing(unchecked: ServedBus, accounts: Accounts) -> None:
    accounts.known["bob"] = Principal("bob", is_admin=True)
    async with unchecked.v1(additional_headers=bearer("t1")) as alice:
        await alice.next_of("welcome")
        await alice.send("subscribe", id=1, pattern="a.x")
        assert (await alice.next_of("ok"))["id"] == 1
        for token, code in (("garbage", "auth.unauthenticated"), ("bob", "auth.forbidden")):
            await alice.send("auth", id=2, token=token)
            assert (await alice.next_of("error"))["error"]["code"] == code
        await unchecked.bus.publish("a.x", 1)
        assert (await alice.next_of("event"))["payload"] == 1


# --- asked again ---------------------------------------------------------------------------------


async def test_a_token_that_is_taken_back_ends_the_connection(served: ServedBus, accounts: Accounts) -> None:
    async with served.v1(additional_headers=bearer("t1")) as alice:
        await alice.next_of("welcome")
        accounts.known.clear()
        frames, code = await alice.rest()
    assert code == 4401
    assert (frames[-1]["error"]["code"], frames[-1]["reconnect"]) == ("auth.unauthenticated", False)


async def test_a_token_from_the_first_frame_is_asked_about_again_too(served: ServedBus, accounts: Accounts) -> None:
    async with _connect(served, "?auth=frame") as alice:
        await alice.ask("auth", id=1, token="t1")
        await alice.next_of("ok")
        accounts.known.clear()
        assert (await alice.rest())[1] == 4401


async def test_grants_that_are_taken_back_end_a_stream(served: ServedBus, accounts: Accounts) -> None:
    url = f"{served.served.http}/events/stream?pattern=a.x"
    async with (
        httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as http,
        http.stream("GET", url, headers=bearer("t1")) as answer,
    ):
        assert answer.status_code == 200
        accounts.known["t1"] = Principal("alice", subscribe=["b.#"])
        text = "".join([part async for part in answer.aiter_text()])
    assert "auth.forbidden" in text


@pytest.mark.parametrize(
    ("held", "subscription"), [("head", {"pattern": "a.x"}), ("ensure", {"pattern": "b.x", "group": "g"})]
)
async def test_grants_that_are_taken_back_while_a_subscription_is_opened_end_it_too(
    served: ServedBus, accounts: Accounts, monkeypatch: pytest.MonkeyPatch, held: str, subscription: dict[str, str]
) -> None:
    is_there, goes_on = asyncio.Event(), asyncio.Event()
    owner = served.bus.node.store if held == "head" else served.bus.node.store.groups
    ask = getattr(owner, held)

    async def slow(*arguments: Any, **options: Any) -> Any:
        is_there.set()
        await goes_on.wait()
        return await ask(*arguments, **options)

    async with served.v1(additional_headers=bearer("t1")) as alice:
        await alice.next_of("welcome")
        monkeypatch.setattr(owner, held, slow)
        await alice.send("subscribe", id=1, **subscription)
        await is_there.wait()
        accounts.known["t1"] = Principal("alice", subscribe=["b.#"])
        before = accounts.asked
        await eventually(lambda: accounts.asked > before + 1)
        goes_on.set()
        assert (await alice.next_of("error"))["error"]["code"] == "auth.forbidden"
        await served.bus.publish("a.x", "not hers any more")
        await alice.send("ping", id=2)
        assert (await alice.next())["type"] == "pong"


async def test_a_connection_whose_grants_stay_is_left_alone(served: ServedBus, accounts: Accounts) -> None:
    async with served.v1(additional_headers=bearer("t1")) as alice:
        await alice.next_of("welcome")
        asked = accounts.asked
        await eventually(lambda: accounts.asked > asked + 3)
        assert (await alice.ask("ping", id=1))["type"] == "pong"


# --- tickets -------------------------------------------------------------------------------------


async def test_a_ticket_opens_one_connection_or_one_stream(tmp_path: Path, accounts: Accounts) -> None:
    async with (
        serving_guarded(tmp_path, accounts, tickets=True, recheck_interval=0.1) as served,
        httpx.AsyncClient(base_url=served.served.http, trust_env=False, timeout=PATIENCE) as http,
    ):
        given = await http.post("/tickets", headers=bearer("t1"))
        assert (given.status_code, given.json()["expires_in"]) == (201, 30)
        query = f"?ticket={given.json()['ticket']}"
        async with _connect(served, query) as alice:
            assert (await alice.next_of("welcome"))["principal"] == "alice"
            await asyncio.sleep(0.3)  # asked again meanwhile, with the ticket that is used
            assert (await alice.ask("ping", id=1))["type"] == "pong"
        with pytest.raises(InvalidStatus) as refused:
            async with _connect(served, query):
                pass
        assert refused.value.response.status_code == 401
        assert (await http.get(f"/events/stream{query}")).status_code == 401

        ticket = (await http.post("/tickets", headers=bearer("t1"))).json()["ticket"]
        async with http.stream("GET", f"/events/stream?pattern=a.x&ticket={ticket}") as answer:
            assert answer.status_code == 200


async def test_without_tickets_there_is_no_such_route(served: ServedBus) -> None:
    async with httpx.AsyncClient(base_url=served.served.http, trust_env=False) as http:
        assert (await http.post("/tickets", headers=bearer("t1"))).status_code == 404


def _connect(served: ServedBus, query: str) -> Any:
    return peer(served.served.ws + query, subprotocols=[V1])


# --- before it is open ---------------------------------------------------------------------------


async def test_a_principal_has_so_many_connections_and_no_more(tmp_path: Path, accounts: Accounts) -> None:
    accounts.known["bob"] = Principal("bob")
    async with (
        serving_guarded(tmp_path, accounts, max_connections_per_principal=1) as served,
        served.v1(additional_headers=bearer("t1")) as alice,
    ):
        await alice.next_of("welcome")
        with pytest.raises(InvalidStatus) as refused:
            async with served.v1(additional_headers=bearer("t1")):
                pass
        assert refused.value.response.status_code == 429
        assert refused.value.response.headers["Retry-After"]
        async with served.v1(additional_headers=bearer("bob")) as bob:
            assert (await bob.next_of("welcome"))["principal"] == "bob"
        async with _connect(served, "?auth=frame") as again:
            await again.send("auth", token="t1")
            assert (await again.rest())[1] == 4429


async def test_the_database_is_not_asked_for_who_is_not_known(tmp_path: Path, accounts: Accounts) -> None:
    """Given a bus whose node has stopped, whoever is not known yet is treated as ever, and whoever is known sees it."""
    async with serving_guarded(tmp_path, accounts, hello_timeout=0.2) as served:
        await served.bus.node.stop()
        async with _connect(served, "?auth=frame") as silent:
            assert (await silent.rest())[1] == 4401
    async with serving_guarded(tmp_path, accounts) as served:
        await served.bus.node.stop()
        with pytest.raises(InvalidStatus) as refused:
            async with served.v1():
                pass
        assert refused.value.response.status_code == 401
        async with _connect(served, "?auth=frame") as alice:
            await alice.send("auth", token="t1")
            frames, code = await alice.rest()
            assert (frames[-1]["error"]["code"], code) == ("server.not_running", 4500)
