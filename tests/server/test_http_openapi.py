"""The OpenAPI document: valid, complete, and true.

Its examples are sent as they stand, and its schemas are held against the answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from eventbus_fastapi import EventBus
from eventbus_fastapi.store import Ack
from tests.server.asking import app_of, asking, bus_on
from tests.server.examples import GROUP, RECURRING, prepare
from tests.server.sockets import serving_bus

Object = dict[str, Any]
ENDLESS = "/events/stream"
"""The path whose answer does not end, so that only a real server can be asked for it."""


class Operation(NamedTuple):
    method: str
    path: str
    document: Object


@pytest.fixture
async def eventbus(tmp_path: Path) -> AsyncIterator[EventBus]:
    async with bus_on(tmp_path) as eventbus:
        yield eventbus


@pytest.fixture
async def http(eventbus: EventBus) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(app_of(eventbus)) as client:
        yield client


@pytest.fixture(scope="module")
def document() -> Object:
    return app_of(EventBus("sqlite+aiosqlite:///:memory:")).openapi()


def operations(document: Object) -> Iterator[Operation]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield Operation(method.upper(), path, operation)


def contents(document: Object) -> Iterator[tuple[str, str, Object]]:
    """Yield every documented body: its status (or "request"), its media type and what is said of it."""
    for operation in operations(document):
        for media_type, content in operation.document.get("requestBody", {}).get("content", {}).items():
            yield "request", media_type, content
        for status, response in operation.document["responses"].items():
            for media_type, content in response["content"].items():
                yield status, media_type, content


def check(document: Object, schema: Object, value: Any) -> None:
    """Check a value against a schema of the document."""
    OAS31Validator({**schema, "components": document["components"]}).validate(value)


def check_answer(document: Object, operation: Operation, answer: httpx.Response) -> None:
    """Check that this answer, with this status and media type, is documented."""
    content = operation.document["responses"][str(answer.status_code)]["content"]
    check(document, content[answer.headers["content-type"]]["schema"], answer.json())


def operation_of(document: Object, method: str, path: str) -> Operation:
    return Operation(method, path, document["paths"][path][method.lower()])


# --- the document --------------------------------------------------------------------------------


def test_the_document_is_valid(document: Object) -> None:
    validate(document)


def test_every_operation_has_a_name_a_tag_and_words(document: Object) -> None:
    assert {
        (operation.method, operation.path, operation.document["operationId"]) for operation in operations(document)
    } == {
        ("POST", "/publish", "eventbus_publish"),
        ("GET", "/events", "eventbus_list_events"),
        ("GET", "/events/stream", "eventbus_stream_events"),
        ("GET", "/events/{seq}", "eventbus_get_event"),
        ("GET", "/healthz", "eventbus_healthz"),
        ("GET", "/readyz", "eventbus_readyz"),
        ("GET", "/groups", "eventbus_list_groups"),
        ("GET", "/groups/{name}", "eventbus_get_group"),
        ("PUT", "/groups/{name}", "eventbus_put_group"),
        ("DELETE", "/groups/{name}", "eventbus_delete_group"),
        ("POST", "/groups/{name}/pause", "eventbus_pause_group"),
        ("POST", "/groups/{name}/resume", "eventbus_resume_group"),
        ("POST", "/groups/{name}/reset", "eventbus_reset_group"),
        ("GET", "/groups/{name}/retries", "eventbus_list_retries"),
        ("GET", "/groups/{name}/blocked-keys", "eventbus_list_blocked_keys"),
        ("GET", "/rate-limits", "eventbus_list_rate_limits"),
        ("PUT", "/rate-limits/{name}", "eventbus_put_rate_limit"),
        ("GET", "/dead-letters", "eventbus_list_dead_letters"),
        ("GET", "/dead-letters/{group}/{seq}", "eventbus_get_dead_letter"),
        ("POST", "/dead-letters/retry", "eventbus_retry_dead_letters"),
        ("POST", "/dead-letters/discard", "eventbus_discard_dead_letters"),
        ("GET", "/queues", "eventbus_list_queues"),
        ("POST", "/queues/{name}/pause", "eventbus_pause_queue"),
        ("POST", "/queues/{name}/resume", "eventbus_resume_queue"),
        ("POST", "/queues/{name}/scale", "eventbus_scale_queue"),
        ("GET", "/workers", "eventbus_list_workers"),
        ("GET", "/archive", "eventbus_list_archive"),
        ("GET", "/archive/{id}", "eventbus_get_archived"),
        ("GET", "/recurring", "eventbus_list_recurring"),
        ("GET", "/recurring/{name}", "eventbus_get_recurring"),
        ("PUT", "/recurring/{name}", "eventbus_put_recurring"),
        ("DELETE", "/recurring/{name}", "eventbus_delete_recurring"),
        ("POST", "/recurring/{name}/pause", "eventbus_pause_recurring"),
        ("POST", "/recurring/{name}/resume", "eventbus_resume_recurring"),
        ("POST", "/recurring/{name}/run", "eventbus_run_recurring"),
    }
    for operation in operations(document):
        assert operation.document["tags"] == ["eventbus"]
        assert operation.document["summary"]
        assert operation.document["description"]


def test_every_failure_is_documented_as_a_problem(document: Object) -> None:
    for status, media_type, _ in contents(document):
        assert (media_type == "application/problem+json") == (status.isdecimal() and int(status) >= 400)


def test_every_example_fits_its_schema(document: Object) -> None:
    checked = 0
    for _, _, content in contents(document):
        for example in content.get("examples", {}).values():
            check(document, content["schema"], example["value"])
            checked += 1
    for schema in document["components"]["schemas"].values():
        for example in schema.get("examples", []):
            check(document, schema, example)
            checked += 1
    assert checked > 20


def test_a_problem_that_is_documented_has_the_status_it_is_documented_for(document: Object) -> None:
    for status, media_type, content in contents(document):
        if media_type == "application/problem+json":
            for code, example in content["examples"].items():
                assert (str(example["value"]["status"]), example["value"]["code"]) == (status, code)


# --- what it says is so --------------------------------------------------------------------------


async def test_every_request_example_is_accepted_as_it_stands(
    document: Object, eventbus: EventBus, http: httpx.AsyncClient
) -> None:
    sent = 0
    for operation in operations(document):
        content = operation.document.get("requestBody", {}).get("content", {})
        for name, example in content.get("application/json", {}).get("examples", {}).items():
            await prepare(eventbus)
            answer = await http.request(operation.method, path_of(operation), json=example["value"])
            assert answer.status_code in (200, 201), (operation.path, name, answer.text)
            check_answer(document, operation, answer)
            sent += 1

    assert sent >= 16


async def test_every_cloudevent_example_is_accepted_as_it_stands(
    document: Object, eventbus: EventBus, http: httpx.AsyncClient
) -> None:
    operation = operation_of(document, "POST", "/publish")
    sent = 0
    for media_type, content in operation.document["requestBody"]["content"].items():
        if not media_type.startswith("application/cloudevents"):
            continue
        for example in content["examples"].values():
            answer = await http.post("/publish", json=example["value"], headers={"content-type": media_type})
            assert answer.status_code == 201, answer.text
            check_answer(document, operation, answer)
            sent += 1

    assert sent == 2


@pytest.mark.parametrize(
    ("path", "media_type"),
    [("/events", "application/cloudevents-batch+json"), ("/events/{seq}", "application/cloudevents+json")],
)
async def test_an_answer_with_cloudevents_is_as_documented(
    document: Object, eventbus: EventBus, http: httpx.AsyncClient, path: str, media_type: str
) -> None:
    await eventbus.publish("a", {"x": 1}, key="k", metadata={"m": [1]}, ttl=60)
    await eventbus.publish("a", b"\x00")

    answer = await http.get(path.format(seq=1), headers={"accept": media_type})

    assert answer.headers["content-type"] == media_type
    check_answer(document, operation_of(document, "GET", path), answer)


async def test_every_parameter_example_is_accepted_as_it_stands(
    document: Object, eventbus: EventBus, http: httpx.AsyncClient
) -> None:
    asked = 0

    for operation in operations(document):
        if operation.path == ENDLESS:
            continue
        for parameter in operation.document.get("parameters", []):
            for example in parameter["examples"].values():
                check(document, parameter["schema"], example["value"])
                await prepare(eventbus)
                chosen = {parameter["name"]: example["value"]}
                path = path_of(operation, **chosen)
                body = next(iter(bodies_of(operation)), None)
                query = chosen if parameter["in"] == "query" else {}
                answer = await http.request(operation.method, path, params=query, json=body)
                assert answer.status_code in (200, 201), (path, query, answer.text)
                check_answer(document, operation, answer)
                asked += 1

    assert asked >= 20


async def test_every_parameter_example_of_a_stream_begins_one(document: Object, tmp_path: Path) -> None:
    [content_type] = operation_of(document, "GET", ENDLESS).document["responses"]["200"]["content"]
    async with serving_bus(tmp_path) as served, httpx.AsyncClient(base_url=served.served.http) as http:
        for parameter in operation_of(document, "GET", ENDLESS).document["parameters"]:
            for example in parameter["examples"].values():
                check(document, parameter["schema"], example["value"])
                chosen = {parameter["name"]: example["value"]}
                where: Any = {"params" if parameter["in"] == "query" else "headers": chosen}
                async with http.stream("GET", ENDLESS, **where) as answer:
                    assert answer.status_code == 200, chosen
                    assert answer.headers["content-type"].startswith(content_type)


def bodies_of(operation: Operation) -> list[Any]:
    """Return the examples of what an operation is sent."""
    content = operation.document.get("requestBody", {}).get("content", {}).get("application/json", {})
    return [example["value"] for example in content.get("examples", {}).values()]


def path_of(operation: Operation, **chosen: Any) -> str:
    """Return the path of an operation, with the first example of each of its parameters that is not chosen."""
    parameters = [each for each in operation.document.get("parameters", []) if each["in"] == "path"]
    first = {each["name"]: next(iter(each["examples"].values()))["value"] for each in parameters}
    return operation.path.format(**first | chosen)


@pytest.mark.parametrize(
    ("method", "path", "request_path", "body", "status"),
    [
        ("GET", "/events", "/events", None, 200),
        ("GET", "/events/{seq}", "/events/1", None, 200),
        ("GET", "/events/{seq}", "/events/99", None, 404),
        ("GET", "/events/{seq}", "/events/x", None, 422),
        ("GET", "/events", "/events?limit=0", None, 422),
        ("GET", "/events", "/events?pattern=a..b", None, 422),
        ("GET", "/healthz", "/healthz", None, 200),
        ("GET", "/readyz", "/readyz", None, 200),
        ("GET", "/groups", "/groups", None, 200),
        ("GET", "/groups/{name}", f"/groups/{GROUP}", None, 200),
        ("GET", "/groups/{name}", "/groups/nobody", None, 404),
        ("GET", "/groups/{name}/retries", f"/groups/{GROUP}/retries", None, 200),
        ("GET", "/groups/{name}/retries", f"/groups/{GROUP}/retries?limit=0", None, 422),
        ("GET", "/groups/{name}/blocked-keys", f"/groups/{GROUP}/blocked-keys", None, 200),
        ("PUT", "/groups/{name}", "/groups/new", {"patterns": ["#"]}, 201),
        ("PUT", "/groups/{name}", f"/groups/{GROUP}", {"patterns": ["#"]}, 200),
        ("PUT", "/groups/{name}", "/groups/a%20b", {"patterns": ["#"]}, 422),
        ("PUT", "/groups/{name}", "/groups/new", None, 415),
        ("PUT", "/groups/{name}", "/groups/new", {"patterns": ["x" * 1_100_000]}, 413),
        ("DELETE", "/groups/{name}", "/groups/nobody", None, 404),
        ("POST", "/groups/{name}/pause", "/groups/nobody/pause", {}, 404),
        ("POST", "/groups/{name}/pause", f"/groups/{GROUP}/pause", None, 415),
        ("POST", "/groups/{name}/reset", f"/groups/{GROUP}/reset", {}, 422),
        ("GET", "/dead-letters", "/dead-letters", None, 200),
        ("GET", "/dead-letters", "/dead-letters?group=nobody", None, 404),
        ("GET", "/dead-letters/{group}/{seq}", f"/dead-letters/{GROUP}/1", None, 200),
        ("GET", "/dead-letters/{group}/{seq}", f"/dead-letters/{GROUP}/2", None, 404),
        ("POST", "/dead-letters/retry", "/dead-letters/retry", {"group": GROUP}, 422),
        ("POST", "/dead-letters/discard", "/dead-letters/discard", {"group": "nobody", "seqs": [1]}, 404),
        ("GET", "/queues", "/queues", None, 200),
        ("POST", "/queues/{name}/pause", "/queues/email/pause", {}, 200),
        ("POST", "/queues/{name}/scale", "/queues/email/scale", {"workers": 0}, 422),
        ("GET", "/workers", "/workers", None, 200),
        ("GET", "/archive", "/archive?outcome=dead", None, 200),
        ("GET", "/archive", "/archive?group=nobody", None, 404),
        ("GET", "/archive", "/archive?outcome=lost", None, 422),
        ("GET", "/archive/{id}", "/archive/1", None, 200),
        ("GET", "/archive/{id}", "/archive/99", None, 404),
        ("GET", "/archive/{id}", "/archive/0", None, 422),
        ("GET", "/recurring", "/recurring", None, 200),
        ("GET", "/recurring/{name}", f"/recurring/{RECURRING}", None, 200),
        ("PUT", "/recurring/{name}", "/recurring/new", {"cron": "@daily", "topic": "a", "payload": None}, 201),
        ("PUT", "/recurring/{name}", f"/recurring/{RECURRING}", {"cron": "@daily", "topic": "a", "payload": 1}, 200),
        ("DELETE", "/recurring/{name}", f"/recurring/{RECURRING}", None, 200),
        ("POST", "/recurring/{name}/run", f"/recurring/{RECURRING}/run", {}, 201),
        ("POST", "/publish", "/publish", {"topic": "a..b", "payload": 1}, 422),
        ("POST", "/publish", "/publish", [{"topic": "a", "payload": 1}] * 1_001, 413),
        ("POST", "/publish", "/publish", {"topic": "a", "payload": "x" * 1_100_000}, 413),
        ("POST", "/publish", "/publish", None, 415),
    ],
)
async def test_an_answer_is_as_documented(
    document: Object,
    eventbus: EventBus,
    http: httpx.AsyncClient,
    method: str,
    path: str,
    request_path: str,
    body: Any,
    status: int,
) -> None:
    await eventbus.publish("a", {"x": 1}, key="k", metadata={"m": [1]})
    await eventbus.publish("a", b"\x00")
    await eventbus.node.acknowledge([Ack(1, None)])
    await prepare(eventbus)

    answer = await http.request(method, request_path, json=body)

    assert answer.status_code == status, answer.text
    check_answer(document, operation_of(document, method, path), answer)


PROBLEMS: list[tuple[str, str, str, int, Object]] = [
    ("POST", "/publish", "payload.too_large", 413, {"json": {"topic": "a", "payload": "x" * 300_000}}),
    ("POST", "/publish", "batch.too_large", 413, {"json": [{"topic": "a", "payload": 1}] * 1_001}),
    ("POST", "/publish", "request.too_large", 413, {"json": "x" * 1_100_000}),
    (
        "POST",
        "/publish",
        "cloudevent.invalid",
        400,
        {"json": {"specversion": "1.0"}, "headers": {"content-type": "application/cloudevents+json"}},
    ),
    (
        "POST",
        "/publish",
        "idempotency.invalid",
        400,
        {"json": {"topic": "a", "payload": 1}, "headers": {"Idempotency-Key": ""}},
    ),
    ("POST", "/publish", "request.media_type", 415, {"headers": {"content-type": "text/plain"}}),
    ("POST", "/publish", "request.invalid", 422, {"json": {"payload": 1}}),
    ("POST", "/publish", "topic.invalid", 422, {"json": {"topic": "orders.", "payload": 1}}),
    (
        "POST",
        "/publish",
        "payload.invalid",
        422,
        {"json": {"topic": "a", "payload": {}, "content_type": "image/png"}},
    ),
    ("POST", "/publish", "event.invalid", 422, {"json": {"topic": "a", "payload": 1, "durable": False, "delay": 1}}),
    ("GET", "/events", "request.invalid", 422, {"params": {"limit": 5_000}}),
    ("GET", "/events", "pattern.invalid", 422, {"params": {"pattern": "user.*x"}}),
    ("GET", "/events/stream", "request.invalid", 422, {"headers": {"Last-Event-ID": "seventeen"}}),
    ("GET", "/events/stream", "pattern.invalid", 422, {"params": {"pattern": "user.*x"}}),
    ("GET", "/events/{seq}", "event.not_found", 404, {}),
    ("GET", "/events/{seq}", "request.invalid", 422, {"seq": 0}),
    ("GET", "/groups/{name}", "group.not_found", 404, {"name": "shop.nobody"}),
    ("DELETE", "/groups/{name}", "group.not_found", 404, {"name": "shop.nobody"}),
    ("GET", "/groups/{name}", "group.invalid", 422, {"name": "a b"}),
    ("PUT", "/groups/{name}", "pattern.invalid", 422, {"json": {"patterns": ["user.*x"]}}),
    ("POST", "/groups/{name}/pause", "request.invalid", 422, {"json": {"patern": 1}}),
    ("POST", "/groups/{name}/resume", "request.media_type", 415, {"headers": {"content-type": "text/plain"}}),
    ("GET", "/groups/{name}/retries", "request.invalid", 422, {"params": {"limit": 5_000}}),
    ("GET", "/groups/{name}/blocked-keys", "group.not_found", 404, {"name": "shop.nobody"}),
    ("GET", "/dead-letters", "pattern.invalid", 422, {"params": {"pattern": "user.*x"}}),
    ("GET", "/dead-letters/{group}/{seq}", "event.not_found", 404, {}),
    ("GET", "/dead-letters/{group}/{seq}", "request.invalid", 422, {"seq": 0}),
    (
        "POST",
        "/dead-letters/retry",
        "pattern.invalid",
        422,
        {"json": {"group": GROUP, "filter": {"patterns": ["user.*x"]}}},
    ),
    ("POST", "/dead-letters/discard", "group.not_found", 404, {"json": {"group": "shop.nobody", "seqs": [1]}}),
    ("GET", "/recurring/{name}", "recurring.not_found", 404, {"name": "nightly"}),
    ("DELETE", "/recurring/{name}", "recurring.invalid", 422, {"name": "a b"}),
    ("POST", "/recurring/{name}/pause", "request.invalid", 422, {"json": {"until": 1}}),
    ("POST", "/recurring/{name}/run", "recurring.not_found", 404, {"name": "nightly", "json": {}}),
    ("PUT", "/recurring/{name}", "request.invalid", 422, {"json": {"topic": "a", "payload": 1}}),
    ("PUT", "/recurring/{name}", "topic.invalid", 422, {"json": {"cron": "@daily", "topic": "orders.", "payload": 1}}),
    (
        "PUT",
        "/recurring/{name}",
        "event.invalid",
        422,
        {"json": {"cron": "@daily", "topic": "a", "payload": 1, "key": ""}},
    ),
    (
        "PUT",
        "/recurring/{name}",
        "payload.too_large",
        413,
        {"json": {"cron": "@daily", "topic": "a", "payload": "x" * 300_000}},
    ),
]


@pytest.mark.parametrize(("method", "path", "code", "status", "request_"), PROBLEMS)
async def test_a_problem_comes_as_its_example_says(
    document: Object,
    eventbus: EventBus,
    http: httpx.AsyncClient,
    method: str,
    path: str,
    code: str,
    status: int,
    request_: Object,
) -> None:
    await eventbus.node.steward.declare(GROUP, ["#"])
    content = operation_of(document, method, path).document["responses"][str(status)]["content"]
    example = content["application/problem+json"]["examples"][code]["value"]

    parts = {"seq": 17, "name": GROUP, "group": GROUP}
    options = {name: value for name, value in request_.items() if name not in parts}
    answer = await http.request(method, path.format(**parts | request_), **options)

    assert answer.json() == example


@pytest.mark.parametrize(
    ("method", "path", "broken_by", "status", "code"),
    [
        ("POST", "/publish", "DROP TABLE bus_event", 500, "store.failed"),
        ("GET", "/events", "DROP TABLE bus_event", 500, "store.failed"),
        ("GET", "/events", "DELETE FROM bus_head", 503, "store.schema"),
        ("GET", "/events/stream", "DELETE FROM bus_head", 503, "store.schema"),
        ("GET", "/events/{seq}", "DROP TABLE bus_event", 500, "store.failed"),
        ("PUT", "/groups/{name}", "DELETE FROM bus_head", 503, "store.schema"),
        ("POST", "/groups/{name}/reset", "DELETE FROM bus_head", 503, "store.schema"),
    ],
)
async def test_what_a_broken_database_answers_is_as_its_example_says(
    document: Object,
    eventbus: EventBus,
    http: httpx.AsyncClient,
    method: str,
    path: str,
    broken_by: str,
    status: int,
    code: str,
) -> None:
    await eventbus.node.steward.declare(GROUP, ["#"])
    async with eventbus.engine.begin() as connection:
        await connection.exec_driver_sql(broken_by)
    operation = operation_of(document, method, path)
    body = next(iter(bodies_of(operation)), None)

    answer = await http.request(method, path_of(operation), json=body)

    assert answer.status_code == status
    content = operation_of(document, method, path).document["responses"][str(status)]["content"]
    assert answer.json() == content["application/problem+json"]["examples"][code]["value"]


async def test_what_a_stopped_bus_answers_is_as_documented(
    document: Object, eventbus: EventBus, http: httpx.AsyncClient
) -> None:
    await eventbus.stop()

    for operation in operations(document):
        if operation.path == "/healthz":
            continue
        body = next(iter(bodies_of(operation)), None)
        answer = await http.request(operation.method, path_of(operation), json=body)
        assert answer.status_code == 503, operation
        check_answer(document, operation, answer)
        examples = operation.document["responses"]["503"]["content"]["application/problem+json"]["examples"]
        assert answer.json() == examples[answer.json()["code"]]["value"]
