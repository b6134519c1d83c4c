"""Metrics: what a bus does is in its numbers, and no scrape waits for a database that is away."""

from __future__ import annotations

import asyncio
import logging
import re
import urllib.request
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import HTTPConnection

from eventbus_fastapi import BusSession, Discard, EventBus, EventBusClient, Settings, Snooze
from eventbus_fastapi.auth import Principal
from eventbus_fastapi.errors import SettingsError, Unauthenticated
from eventbus_fastapi.pipeline.observer import Observer
from eventbus_fastapi.server import metrics
from eventbus_fastapi.server.metrics_port import MetricsPort
from eventbus_fastapi.telemetry.meters import Backlog
from tests import documents
from tests.conftest import OpenBus
from tests.examples.running import free_port
from tests.pipeline.conftest import MEMORY
from tests.processes import CHECKOUT
from tests.server.asking import app_of, asking, bus_on
from tests.server.sockets import serving_bus
from tests.serving import serving
from tests.telemetry.reading import Scrape, parse, scrape
from tests.waiting import eventually

DOCS = CHECKOUT / "docs" / "observability.md"


async def until(bus: EventBus, name: str, value: float, **labels: str) -> Scrape:
    """Wait until a metric has a value."""

    async def check() -> Scrape:
        found = await scrape(bus)
        assert found.of(name, **labels) == value
        return found

    return await eventually(check)


# --- publishing ----------------------------------------------------------------------------------


async def test_what_is_published_counts_by_how(bus: EventBus) -> None:
    """Given events of each way of publishing, then each counts where it belongs, and duplicates apart."""
    receipt = await bus.publish("a", 1)
    await bus.publish("a", 1, message_id=receipt.message_id)
    await bus.publish_many([("b", 1), ("b", 2)])
    await bus.publish("live", 1, durable=False)
    async with AsyncSession(bus.engine) as session, session.begin():
        await bus.publish_txn(session, "c", 1)
    found = await until(bus, "eventbus_sequenced_total", 1)
    assert found.of("eventbus_published_total", way="log") == 3
    assert found.of("eventbus_published_total", way="outbox") == 1
    assert found.of("eventbus_published_total", way="live") == 1
    assert found["eventbus_duplicates_total"] == 1
    assert found["eventbus_commit_seconds_count"] >= 2


async def test_what_an_append_takes_along_from_the_outbox_is_sequenced_too(open_bus: OpenBus) -> None:
    """Given an event in the outbox of a bus whose sequencer sleeps, when another is published, then one was moved."""
    bus = await open_bus(poll_interval=60)
    store = bus.node.store
    async with bus.engine.begin() as connection:
        await connection.execute(*store.sql.insert_draft(bus.draft("a", 1)))
    await bus.publish("b", 1)
    assert (await scrape(bus))["eventbus_sequenced_total"] == 1


@pytest.mark.databases("sqlite")
async def test_topics_are_told_of_by_pattern_and_only_when_asked_for(open_bus: OpenBus) -> None:
    bus = await open_bus(metrics_topics=("user.*", "order.paid"))
    await bus.publish_many([("user.1", 1), ("user.2", 1), ("secret.topic", 1)])
    found = await scrape(bus)
    assert found.of("eventbus_published_by_topic_total", topic="user.*") == 2
    assert found.of("eventbus_published_by_topic_total", topic="order.paid") == 0
    assert "secret.topic" not in str(found)


@pytest.mark.parametrize("said", ["user..created", "user.", ""])
def test_a_pattern_that_cannot_be_is_refused_as_a_setting(said: str) -> None:
    with pytest.raises(SettingsError, match=r"^setting metrics_topics"):
        Settings(metrics_topics=(said,))


def test_patterns_that_are_no_json_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTBUS_METRICS_TOPICS", "user.*")
    with pytest.raises(SettingsError) as refused:
        Settings()
    assert str(refused.value) == "setting metrics_topics (EVENTBUS_METRICS_TOPICS): expected a JSON list, got 'user.*'"


# --- groups --------------------------------------------------------------------------------------


@pytest.mark.databases("sqlite", "postgresql")
async def test_what_handlers_do_counts_by_queue_and_outcome(open_bus: OpenBus) -> None:
    """Given handlers that end in each way, then each outcome counts under their queue, and each attempt is measured."""
    bus = await open_bus()
    once: set[int] = set()

    @bus.handler("#", group="ending", queue="email", max_retries=1, backoff=lambda attempt: 0.0)
    async def end(event: int) -> Any:
        if event == 1:
            return Discard("no")
        if event == 2 and event not in once:
            once.add(event)
            return Snooze(0.001)
        if event == 3:
            raise ValueError("no")
        return None

    await bus.workers.start()
    await bus.publish_many([("a", number) for number in range(4)])
    found = await until(bus, "eventbus_outcomes_total", 1, queue="email", outcome="dead")
    await until(bus, "eventbus_outcomes_total", 2, queue="email", outcome="acked")
    found = await scrape(bus)
    assert found.of("eventbus_outcomes_total", queue="email", outcome="discarded") == 1
    assert found.of("eventbus_outcomes_total", queue="email", outcome="snoozed") == 1
    assert found.of("eventbus_outcomes_total", queue="email", outcome="retried") == 1
    assert found.of("eventbus_attempt_seconds_count", queue="email") == 6
    assert found.of("eventbus_delivered_total", via="worker") == 6
    assert found.of("eventbus_claims_total", result="taken") >= 1
    assert found["eventbus_settle_seconds_count"] >= 1
    assert found.of("eventbus_workers", queue="email") == 10
    assert found.of("eventbus_workers_busy", queue="email") == 0
    await bus.workers.join(1)


@pytest.mark.databases("sqlite")
async def test_what_a_handler_acks_in_its_own_transaction_counts_too(bus: EventBus) -> None:
    @bus.handler("#", group="own", queue="own")
    async def handle(event: int, session: BusSession) -> None:
        assert session is not None

    await bus.workers.start()
    await bus.publish("a", 1)
    await until(bus, "eventbus_outcomes_total", 1, queue="own", outcome="acked")


@pytest.mark.databases("sqlite", "postgresql")
async def test_an_event_whose_attempts_ended_without_a_word_counts_as_dead(bus: EventBus) -> None:
    """Given an event whose only attempt died with its process, when it is given up, then that counts."""
    await bus.groups.declare("g", ["#"], start="earliest", max_attempts=1)
    await bus.publish("a", 1)
    groups = bus.node.store.groups
    group = await groups.get("g")
    await groups.claim(group, [(await bus.get(1)).message], up_to=1, owner="died", lease=-1.0)
    await groups.rescue()
    assert await groups.hold_retries(group, limit=1, owner="two", lease=30.0) == []
    assert (await scrape(bus)).of("eventbus_outcomes_total", queue="", outcome="dead") == 1


@pytest.mark.databases("sqlite")
async def test_groups_are_told_of_one_by_one_only_as_long_as_they_are_few(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MOST_GROUPS", 2)
    for name in ("c", "a", "b"):
        await bus.groups.declare(name, ["#"])
    found = await scrape(bus)
    assert found["eventbus_groups"] == 3
    assert found.labels("eventbus_group_lag_events") == {frozenset({("group", name)}) for name in ("a", "b")}


async def test_how_groups_are_is_told_by_group(open_bus: OpenBus) -> None:
    """Given a group that has read nothing and one that is up to date, then each has its own figures."""
    bus = await open_bus()
    bus.node.observer = Observer(bus.node.store, fresh_for=0.001)
    await bus.groups.declare("behind", ["#"], start="earliest")
    await bus.publish_many([("a", 1), ("a", 2), ("a", 3)])
    await bus.groups.declare("done", ["#"], start="now")
    await bus.groups.pause("done")
    found = await scrape(bus)
    assert found.of("eventbus_group_lag_events", group="behind") == 3
    assert found.of("eventbus_group_lag_seconds", group="behind") > 0
    assert found.of("eventbus_group_lag_events", group="done") == 0
    assert found.of("eventbus_group_paused", group="done") == 1
    for name in ("in_flight", "retries", "dead_letters", "lost_total"):
        assert found.of(f"eventbus_group_{name}", group="behind") == 0
    assert found["eventbus_groups"] == 2
    assert found["eventbus_up"] == 1


async def test_how_long_the_outbox_waits_is_told(open_bus: OpenBus) -> None:
    """Given an event that is committed to the outbox and nobody sequences, then its age is told; else it is 0."""
    bus = await open_bus(poll_interval=60)
    assert (await scrape(bus))["eventbus_oldest_unsequenced_seconds"] == 0
    async with bus.engine.begin() as connection:
        await connection.execute(*bus.node.store.sql.insert_draft(bus.draft("a", 1)))
    await eventually(lambda: age_of(bus))


async def age_of(bus: EventBus) -> bool:
    return 0 < await bus.node.store.outbox_age() < 60


# --- connections ---------------------------------------------------------------------------------


async def test_connections_and_what_they_get_are_counted(tmp_path: Path) -> None:
    bus = bus_on(tmp_path)
    async with serving(app_of(bus)) as served, EventBusClient(served.ws) as client:
        async with client.subscribe("#") as subscription, client.subscribe("#", group="members") as member:
            await client.publish("a", 1)
            assert (await anext(subscription)).payload == 1
            await (await anext(member)).ack()
            found = await scrape(bus)
            assert found.of("eventbus_connections", kind="websocket") == 1
            assert found.of("eventbus_delivered_total", via="websocket") == 2
            assert found["eventbus_subscriptions"] == 2
            assert found["eventbus_queued_bytes"] == 0
            assert found.of("eventbus_outcomes_total", queue="", outcome="acked") == 1
        await client.close()
        found = await until(bus, "eventbus_connections", 0, kind="websocket")
        assert found.of("eventbus_connections_ended_total", reason="left") == 1


async def test_a_connection_is_open_until_its_slow_client_has_read_the_goodbye_or_is_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Given a client that does not read, when it is sent away, then it counts until its connection has ended."""
    caplog.set_level(logging.INFO, logger="eventbus_fastapi")
    async with serving_bus(tmp_path, send_timeout=0.2) as served, served.v1() as client:
        await client.send("subscribe", sub=1, patterns=["#"], id=1)
        await client.next_of("ok")
        client.socket.transport.pause_reading()
        for _ in range(40):
            await served.bus.publish_many([("a", "x" * 200_000)] * 2)
        await eventually(lambda: "ended connection" in caplog.text)
        assert (await scrape(served.bus)).of("eventbus_connections", kind="websocket") == 1
        client.socket.transport.abort()
        found = await until(served.bus, "eventbus_connections", 0, kind="websocket")
        assert found.of("eventbus_connections_ended_total", reason="4100") == 1


async def test_streams_are_connections_too(tmp_path: Path) -> None:
    bus = bus_on(tmp_path)
    async with serving(app_of(bus)) as served, httpx.AsyncClient(base_url=served.http, trust_env=False) as http:
        await bus.publish("a", 1)
        async with http.stream("GET", "/events/stream?after=0") as answer:
            assert answer.status_code == 200
            found = await until(bus, "eventbus_delivered_total", 1, via="stream")
            assert found.of("eventbus_connections", kind="stream") == 1
        await until(bus, "eventbus_connections", 0, kind="stream")


async def test_what_is_read_in_the_process_is_counted(tmp_path: Path) -> None:
    async with bus_on(tmp_path) as bus:
        await bus.publish("a", 1)
        async with bus.subscribe("#", start="earliest") as subscription:
            assert (await anext(subscription)).payload == 1
        assert (await scrape(bus)).of("eventbus_delivered_total", via="local") == 1


@pytest.mark.databases("postgresql")
async def test_on_postgresql_the_listener_is_told_of(bus: EventBus) -> None:
    await until(bus, "eventbus_listener_alive", 1)


@pytest.mark.databases("postgresql")
async def test_a_bus_that_only_polls_has_no_listener_to_tell_of(open_bus: OpenBus) -> None:
    bus = await open_bus(poll_only=True)
    assert not (await scrape(bus)).labels("eventbus_listener_alive")


# --- scraping ------------------------------------------------------------------------------------


async def test_the_route_is_there_when_it_is_asked_for_only(tmp_path: Path) -> None:
    async with bus_on(tmp_path) as bus, asking(app_of(bus)) as http:
        assert (await http.get("/metrics")).status_code == 404
    async with bus_on(tmp_path, metrics=True) as bus, asking(app_of(bus)) as http:
        answer = await http.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert parse(answer.text)["eventbus_up"] == 1
        assert parse(answer.text)["process_resident_memory_bytes"] > 0
        assert "/metrics" not in (await http.get("/openapi.json")).text


async def test_where_requests_are_authenticated_metrics_are_for_admins_unless_they_are_public(tmp_path: Path) -> None:
    def know(connection: HTTPConnection) -> Principal:
        if "authorization" not in connection.headers:
            raise Unauthenticated("no token")
        return Principal("someone", is_admin=connection.headers["authorization"] == "admin")

    bus = bus_on(tmp_path, metrics=True, authenticate=know)
    async with bus, asking(app_of(bus)) as http:
        assert (await http.get("/metrics")).status_code == 401
        assert (await http.get("/metrics", headers={"authorization": "other"})).status_code == 403
        assert (await http.get("/metrics", headers={"authorization": "admin"})).status_code == 200
    bus = bus_on(tmp_path, metrics=True, metrics_public=True, authenticate=know)
    async with bus, asking(app_of(bus)) as http:
        assert (await http.get("/metrics")).status_code == 200


@pytest.mark.parametrize("version", ["abc", "1..1", '2-"x'])
async def test_a_scraper_that_asks_for_a_version_which_is_none_gets_text(tmp_path: Path, version: str) -> None:
    async with bus_on(tmp_path, metrics=True) as bus, asking(app_of(bus)) as http:
        answer = await http.get("/metrics", headers={"accept": f"application/openmetrics-text; version={version}"})
        assert (answer.status_code, answer.headers["content-type"][:10]) == (200, "text/plain")


async def test_a_scraper_that_asks_for_openmetrics_gets_it(tmp_path: Path) -> None:
    async with bus_on(tmp_path, metrics=True) as bus, asking(app_of(bus)) as http:
        await bus.publish("a", 1)
        answer = await http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
        assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        families = text_string_to_metric_families(answer.text)  # type: ignore[no-untyped-call]
        assert "eventbus_published" in {family.name for family in families}


async def test_two_buses_in_a_process_have_numbers_of_their_own(tmp_path: Path) -> None:
    async with bus_on(tmp_path) as bus, EventBus(MEMORY) as other:
        await bus.publish("a", 1)
        assert (await scrape(bus)).of("eventbus_published_total", way="log") == 1
        assert (await scrape(other)).of("eventbus_published_total", way="log") == 0


async def test_numbers_go_on_over_a_restart(tmp_path: Path) -> None:
    bus = bus_on(tmp_path)
    for count in (1, 2):
        async with bus:
            await bus.publish("a", 1)
            assert (await scrape(bus)).of("eventbus_published_total", way="log") == count


async def test_names_of_groups_cannot_break_a_scrape(tmp_path: Path) -> None:
    """Given a group with a name of odd characters, then the scrape parses and has it as it is."""
    name = 'a"b\\c{x="y"}1é'
    async with bus_on(tmp_path) as bus:
        await bus.groups.declare(name, ["#"])
        assert (await scrape(bus)).of("eventbus_group_paused", group=name) == 0


async def test_a_bus_that_is_not_started_says_that_it_is_not_up(tmp_path: Path) -> None:
    found = await scrape(bus_on(tmp_path))
    assert found["eventbus_up"] == 0
    assert not found.labels("eventbus_log_last_seq")


async def test_while_the_database_is_away_a_scrape_says_so_and_waits_for_nothing(tmp_path: Path) -> None:
    """Given a database that does not answer, then what the process counts is there, the rest is absent, and is back
    when the database is.
    """
    async with bus_on(tmp_path) as bus:
        await bus.publish("a", 1)
        answers = asyncio.Event()
        observer = bus.node.observer = Slow(bus, answers)
        found = await scrape(bus)
        assert found["eventbus_up"] == 0
        assert found.of("eventbus_published_total", way="log") == 1
        assert not found.labels("eventbus_log_last_seq")
        await scrape(bus)
        assert observer.looks == 1  # one that waits is enough
        answers.set()
        await until(bus, "eventbus_up", 1)


async def test_a_database_that_refuses_is_one_that_is_away(open_bus: OpenBus) -> None:
    """Given a table that is gone, then the scrape says that the node is not up, and has what the process counts."""
    bus = await open_bus(poll_interval=60)
    table = bus.node.store.tables.retry
    async with bus.engine.begin() as connection:
        await connection.run_sync(table.drop)
    found = await scrape(bus)
    assert found["eventbus_up"] == 0
    assert not found.labels("eventbus_group_lag_events")
    assert found.of("eventbus_published_total", way="log") == 0


class Slow(Observer):
    """One whose database answers only when it is told to."""

    def __init__(self, bus: EventBus, answers: asyncio.Event) -> None:
        super().__init__(bus.node.store, patience=0.01)
        self._answers = answers
        self.looks = 0

    async def _look(self) -> Any:
        self.looks += 1
        await self._answers.wait()
        return await super()._look()


async def test_many_scrapes_look_at_the_database_once(tmp_path: Path) -> None:
    async with bus_on(tmp_path) as bus:
        answers = asyncio.Event()
        answers.set()
        observer = bus.node.observer = Slow(bus, answers)
        observer._patience = 10
        await asyncio.gather(*(scrape(bus) for _ in range(20)))
        await scrape(bus)
        assert observer.looks == 1


async def test_a_registry_of_the_program_may_have_the_numbers_too(tmp_path: Path) -> None:
    async with bus_on(tmp_path) as bus:
        await bus.publish("a", 1)
        registry = CollectorRegistry(auto_describe=True)
        registry.register(bus.metrics.collector)
        await eventually(lambda: parse(generate_latest(registry).decode())["eventbus_up"] == 1)


async def test_a_port_of_its_own_answers_with_the_same(tmp_path: Path) -> None:
    """Given a bus with a metrics port, then it answers there from start to stop, in another thread than the bus's."""
    port = free_port()
    async with bus_on(tmp_path, metrics_port=port) as bus:
        await bus.publish("a", 1)
        found = parse(await asyncio.to_thread(fetch, port))
        assert found["eventbus_up"] == 1
        assert found.of("eventbus_published_total", way="log") == 1
    with pytest.raises(OSError, match=r"refused|reset"):
        await asyncio.to_thread(fetch, port)


def fetch(port: int, accept: str = "*/*") -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    with opener.open(request, timeout=10) as answer:
        return str(answer.read().decode())


async def test_each_process_takes_the_first_port_that_is_free(tmp_path: Path) -> None:
    async with bus_on(tmp_path) as bus:
        first = MetricsPort(bus.metrics, "127.0.0.1", free_port())
        second = MetricsPort(bus.metrics, "127.0.0.1", first.port)
        assert first.port < second.port
        await first.close()
        await second.close()


async def test_a_metrics_port_answers_who_asks_for_a_version_which_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bus_on(tmp_path) as bus:
        port = MetricsPort(bus.metrics, "127.0.0.1", 0)

        async def is_up() -> bool:  # once the database has answered within a second
            text = await asyncio.to_thread(fetch, port.port, "application/openmetrics-text; version=abc")
            return "eventbus_up 1.0" in text

        await eventually(is_up)
        await port.close()
    assert capsys.readouterr().err == ""


async def test_a_metrics_port_that_cannot_be_had_is_an_error_that_says_why(tmp_path: Path) -> None:
    bus = bus_on(tmp_path, metrics_host="192.0.2.1", metrics_port=9100)
    with pytest.raises(SettingsError, match=r"^cannot serve metrics on 192\.0\.2\.1 port 9100: "):
        await bus.start()
    await bus.stop()


# --- the docs ------------------------------------------------------------------------------------


def documented() -> dict[str, set[str]]:
    """The names in the table of the docs, each with its labels."""
    table = documents.rows(DOCS, "| metric | labels | meaning |")
    cells = [[cell.strip() for cell in row.split("|")[1:3]] for row in table]
    return {name.strip("`"): set(re.findall(r"`(\w+)`", labels)) for name, labels in cells}


@pytest.mark.databases("postgresql")
async def test_the_table_of_the_docs_is_what_a_scrape_has(open_bus: OpenBus) -> None:
    """Given a bus on which everything has happened once, then its metrics and their labels are those of the table."""
    bus = await open_bus(metrics_topics=("#",), fanout="nats://127.0.0.1:1")  # nothing is there

    @bus.handler("#", group="all")
    async def handle(event: int) -> None: ...

    await bus.workers.start()
    await bus.publish("a", 1)
    await until(bus, "eventbus_outcomes_total", 1, queue="default", outcome="acked")
    bus.node.meters.failures["retention"] += 1
    bus.node.meters.ended["left"] += 1
    bus.node.meters.forwarded["orders"] += 1
    bus.node.meters.refused["orders"] += 1
    bus.node.meters.backlogs["orders"] = Backlog(1, 0.5, 1)
    bus.node.meters.relayed["orders", "confirmed"] += 1
    bus.node.meters.brokers["orders"] = True
    bus.node.meters.ingesting["ingest.orders"] = True
    bus.node.meters.ingested["ingest.orders", "stored"] += 1
    families = {family.name: family for family in bus.metrics.registry.collect() if family.name.startswith("eventbus_")}
    found = {
        f"{name}_total" if family.type == "counter" else name: {
            label for sample in family.samples for label in sample.labels if label != "le"
        }
        for name, family in families.items()
    }
    assert found == documented()
