"""Metrics: the numbers of a bus as Prometheus reads them. The only module that imports `prometheus_client`.

Each bus has a registry of its own, never the global one. What the process counts comes from the `meters` of its node;
what only the database knows is seen by the node's `observer`, a few seconds ago at most. While the database does not
answer, the latter is absent and `eventbus_up` is 0: no scrape waits longer than a second for it.

A counter counts what its own process did: add the processes up. What the database knows is the same in every process:
take any of them.
"""

# Annotations are evaluated here: FastAPI reads those of the endpoint.
import asyncio
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from fastapi import Request, Response
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from eventbus_fastapi.pipeline.fanout import Fanout
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.pipeline.observer import Sight
from eventbus_fastapi.pipeline.settler import LOST, OUTCOMES
from eventbus_fastapi.pipeline.workers import Workers
from eventbus_fastapi.telemetry.meters import VIA, Histogram, Meters
from eventbus_fastapi.version import VERSION

MOST_GROUPS = 1_000
"""Groups that are told of one by one, the first by name: clients may be allowed to make more."""
SCRAPE_TIMEOUT = 5.0
"""Seconds that a scrape from another thread waits for the event loop."""


class Metrics:
    """See the module's docstring. Made by `EventBus.metrics`.

    `registry` may be read in the event loop of the bus and in any other thread. `collector` is what a registry of the
    program's own takes, for those who have a `/metrics` already: `REGISTRY.register(eventbus.metrics.collector)`.
    """

    def __init__(self, node: Node, workers: Workers) -> None:
        self.collector = BusCollector(node, workers)
        self.registry = CollectorRegistry()
        self.registry.register(self.collector)
        ProcessCollector(registry=self.registry)
        self._node = node

    async def text(self, accept: str = "") -> tuple[bytes, str]:
        """Return what is scraped, and its content type: text, or OpenMetrics where the `Accept` header asks for it."""
        if self._node.is_running:
            await self._node.observer.see()
        encode, content_type = choose_encoder(understood(accept))
        return encode(self.registry), content_type

    async def answer(self, request: Request) -> Response:
        """Answer a scrape."""
        body, content_type = await self.text(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})


def understood(accept: str) -> str:
    """Return an `Accept` header, or an empty one where Prometheus' library fails at it.

    It compares versions, of which a client may write what is none.
    """
    try:
        choose_encoder(accept)
    except (TypeError, ValueError):
        return ""
    return accept


class BusCollector(Collector):
    """What a bus has to tell, in any thread."""

    def __init__(self, node: Node, workers: Workers) -> None:
        self._node = node
        self._workers = workers

    def describe(self) -> Iterable[Metric]:
        """Name nothing ahead: what there is depends on what happens."""
        return []

    def collect(self) -> Iterable[Metric]:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._collect_elsewhere()
        if self._node.is_running and self._node.observer.seen is None:
            self._node.observer.begin()  # for the next one
        return list(self._collect())

    def _collect_elsewhere(self) -> Iterable[Metric]:
        """In another thread: have the event loop do it. While that does nothing else, this is all there is to say."""
        loop = self._node.loop
        if not self._node.is_running or loop is None:
            return [_up(None)]
        gathering = asyncio.run_coroutine_threadsafe(self._gather(), loop)
        try:
            return gathering.result(SCRAPE_TIMEOUT)
        except TimeoutError:
            gathering.cancel()
            return [_up(None)]

    async def _gather(self) -> list[Metric]:
        await self._node.observer.see()
        return list(self._collect())

    def _collect(self) -> Iterator[Metric]:
        yield from self._of_process()
        sight = self._node.observer.seen if self._node.is_running else None
        yield _up(sight)
        if sight is not None:
            yield from _of_database(sight)

    def _of_process(self) -> Iterator[Metric]:
        node, meters = self._node, self._node.meters
        yield _labelled_gauge("info", "What runs.", ("version", "node"), {(VERSION, node.consumers.owner): 1})
        yield from self._of_publishing()
        yield from self._of_reading()
        if node.fanout is not None:
            yield from self._of_fanout(node.fanout)
        yield from self._of_groups()
        yield from self._of_relays()
        yield from self._of_queues()
        yield from _of_outboxes(meters)
        yield _counter("stage_failures", "Runs of a stage that failed; it went on.", ("stage",), meters.failures)
        if node.store.has_listener:
            yield _gauge("listener_alive", "Whether the node listens to the others.", int(node.notifier.is_alive))

    def _of_publishing(self) -> Iterator[Metric]:
        node, meters = self._node, self._node.meters
        ways = {way: meters.published[way] for way in ("log", "outbox", "live")}
        yield _counter("published", "Events published: committed, handed to a transaction, or live.", ("way",), ways)
        if meters.published_by_topic:
            by_topic = dict(meters.published_by_topic)
            yield _counter("published_by_topic", "Events published that match a pattern.", ("topic",), by_topic)
        yield _counter("duplicates", "Events published again, so that nothing was stored.", (), meters.duplicates)
        yield _counter("publish_failures", "Events that could not be stored.", (), meters.publish_failures)
        yield _gauge("publishes_waiting", "Events that wait for a commit.", node.publisher.waiting)
        yield _histogram("commit_seconds", "Commits of what was published.", (), {(): meters.commit})
        if meters.ingesting:
            yield _counter("ingested", "Messages taken from brokers.", ("ingest", "result"), meters.ingested)
            connected = {name: int(is_connected) for name, is_connected in meters.ingesting.items()}
            yield _labelled_gauge("ingest_connected", "Whether an ingest has its broker.", ("ingest",), connected)
        yield _counter("sequenced", "Events moved from the outbox to the log.", (), node.store.sequenced)
        yield _histogram("sequence_seconds", "Steps of the sequencer.", (), {(): meters.sequence})

    def _of_reading(self) -> Iterator[Metric]:
        node, meters = self._node, self._node.meters
        yield _counter("dispatched", "Events read for live readers, each once.", (), node.dispatcher.dispatched)
        yield _counter("log_pages_read", "Pages of the log that were read.", (), node.store.pages_read)
        delivered = {via: meters.delivered[via] for via in VIA}
        yield _counter("delivered", "Events delivered, once for each reader.", ("via",), delivered)
        yield _gauge("subscriptions", "Subscriptions that are open, those of groups too.", len(node.subscriptions))
        connections = dict.fromkeys(("websocket", "stream"), 0)
        queued = 0
        for connection in tuple(meters.connections):
            connections[connection.kind] = connections.get(connection.kind, 0) + 1
            queued += connection.queued_bytes
        yield _labelled_gauge("connections", "Connections that are open.", ("kind",), connections)
        yield _counter("connections_ended", "Connections by close code, or left.", ("reason",), meters.ended)
        yield _gauge("queued_bytes", "Bytes that wait for clients to read them.", queued)

    def _of_fanout(self, fanout: Fanout) -> Iterator[Metric]:
        meters = self._node.meters
        runs = {kind: meters.fanout_runs[kind] for kind in ("pushed", "duplicate", "heard", "foreign")}
        yield _counter("fanout_runs", "Runs of events on the stream of the fan-out.", ("result",), runs)
        yield _counter("fanout_events", "Events that readers got from the fan-out.", (), meters.fanout_given)
        yield _counter(
            "fanout_mended", "Events read from the log, as nobody had pushed them.", (), meters.fanout_mended
        )
        yield _counter("fanout_failures", "Times that the fan-out was away.", (), meters.fanout_failures)
        yield _gauge("fanout_alive", "Whether live events come by the fan-out.", int(fanout.is_alive))

    def _of_groups(self) -> Iterator[Metric]:
        node, meters = self._node, self._node.meters
        outcomes = {(queue, outcome): 0 for queue in self._workers.serving for outcome in (*OUTCOMES.values(), LOST)}
        outcomes.update(meters.outcomes)
        if node.store.groups.given_up:
            outcomes["", "dead"] = outcomes.get(("", "dead"), 0) + node.store.groups.given_up
        yield _counter("outcomes", "Deliveries of groups that ended.", ("queue", "outcome"), outcomes)
        claims = {"taken": meters.claims, "missed": meters.missed_claims}
        yield _counter("claims", "Claims of events for groups.", ("result",), claims)
        yield _gauge("held", "Events that this process holds for groups.", node.consumers.settler.held)
        yield _histogram("settle_seconds", "Commits of outcomes.", (), {(): meters.settle})
        attempts = {(queue,): histogram for queue, histogram in tuple(meters.attempts.items())}
        yield _histogram("attempt_seconds", "Attempts to handle an event.", ("queue",), attempts)

    def _of_relays(self) -> Iterator[Metric]:
        meters = self._node.meters
        if not meters.brokers:
            return
        results = {(relay, result): 0 for relay in meters.brokers for result in ("confirmed", "refused", "resent")}
        results.update(meters.relayed)
        yield _counter("relayed", "Events given to brokers, by what became of them.", ("relay", "result"), results)
        there = {relay: int(is_there) for relay, is_there in meters.brokers.items()}
        yield _labelled_gauge("relay_broker_up", "Whether the broker of a relay is there.", ("relay",), there)

    def _of_queues(self) -> Iterator[Metric]:
        serving = self._workers.serving
        of_queue = {
            "workers": ("Events that may be handled at once.", {name: each.workers for name, each in serving.items()}),
            "workers_busy": ("Events that are handled now.", {name: each.busy for name, each in serving.items()}),
            "queue_paused": ("Whether it is paused.", {name: int(each.is_paused) for name, each in serving.items()}),
        }
        for name, (text, values) in of_queue.items():
            yield _labelled_gauge(name, text, ("queue",), values)


class ForwarderMetrics(Collector):
    """The numbers of a process that forwards an outbox and has no bus."""

    def __init__(self, meters: Meters) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        self._meters = meters

    def describe(self) -> Iterable[Metric]:
        """Name nothing ahead."""
        return []

    def collect(self) -> Iterable[Metric]:
        yield _labelled_gauge("info", "What runs.", ("version",), {VERSION: 1})
        yield _counter("stage_failures", "Runs of a stage that failed; it went on.", ("stage",), self._meters.failures)
        yield from _of_outboxes(self._meters)


def _of_outboxes(meters: Meters) -> Iterator[Metric]:
    if not meters.backlogs and not meters.forwarded:
        return
    yield _counter("forwarded", "Events carried from other databases to the bus.", ("outbox",), meters.forwarded)
    yield _counter("forward_refused", "Those that the bus refused.", ("outbox",), meters.refused)
    backlogs = dict(meters.backlogs)
    of_outbox: dict[str, tuple[str, dict[str, float]]] = {
        "outbox_waiting": ("Events that wait for the bus.", {name: each.waiting for name, each in backlogs.items()}),
        "outbox_oldest_seconds": ("Age of the oldest.", {name: each.oldest for name, each in backlogs.items()}),
        "outbox_refused": ("Events that the bus has refused.", {name: each.refused for name, each in backlogs.items()}),
    }
    for name, (text, values) in of_outbox.items():
        yield _labelled_gauge(name, text, ("outbox",), values)


def _up(sight: Sight | None) -> Metric:
    return _gauge("up", "Whether the node runs and its database answers.", int(sight is not None))


def _of_database(sight: Sight) -> Iterator[Metric]:
    yield _gauge("log_last_seq", "The newest seq.", sight.head.last_seq)
    yield _gauge("log_first_seq", "The oldest seq that retention has kept.", sight.head.first_seq)
    yield _gauge("oldest_unsequenced_seconds", "Age of the oldest event without a seq.", sight.outbox_age)
    yield _gauge("groups", "Groups.", len(sight.groups))
    groups = sight.groups[:MOST_GROUPS]
    of_group: dict[str, tuple[str, dict[str, float]]] = {
        "group_lag_events": ("Events that it has not looked at.", {g.name: f.lag for g, f in groups}),
        "group_lag_seconds": ("Age of the oldest of them.", {g.name: f.lag_seconds for g, f in groups}),
        "group_in_flight": ("Events that some node holds for it.", {g.name: f.in_flight for g, f in groups}),
        "group_retries": ("Events that wait for another attempt.", {g.name: f.retries for g, f in groups}),
        "group_dead_letters": ("Events that it has given up.", {g.name: f.dead for g, f in groups}),
        "group_paused": ("Whether it is paused.", {g.name: int(g.is_paused) for g, f in groups}),
    }
    for name, (text, values) in of_group.items():
        yield _labelled_gauge(name, text, ("group",), values)
    lost = {group.name: group.lost for group, _ in groups}
    yield _counter("group_lost", "Events that retention removed before it had read them.", ("group",), lost)


# --- how Prometheus has them ---

Labelled = Mapping[Any, float]
"""Values by label, or by several as a tuple."""


def _counter(name: str, text: str, labels: tuple[str, ...], values: Labelled | int) -> Metric:
    family = CounterMetricFamily(f"eventbus_{name}", text, labels=labels)
    for label, value in _by_labels(values):
        family.add_metric(label, value)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"eventbus_{name}", text, value=value)


def _labelled_gauge(name: str, text: str, labels: tuple[str, ...], values: Labelled) -> Metric:
    family = GaugeMetricFamily(f"eventbus_{name}", text, labels=labels)
    for label, value in _by_labels(values):
        family.add_metric(label, value)
    return family


def _histogram(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, Histogram]) -> Metric:
    family = HistogramMetricFamily(f"eventbus_{name}", text, labels=labels)
    for label, histogram in values.items():
        bounds = [*map(str, histogram.bounds), "+Inf"]
        family.add_metric(label, list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.sum)
    return family


def _by_labels(values: Labelled | int) -> list[tuple[tuple[str, ...], float]]:
    if isinstance(values, int):
        return [((), values)]
    copy = dict(values)  # at once: another thread may read while the loop counts
    return [((label,) if isinstance(label, str) else label, value) for label, value in copy.items()]
