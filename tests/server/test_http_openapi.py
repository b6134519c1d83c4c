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

Object = dict[str, Any]


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


@pytest.fixture
def document(eventbus: EventBus) -> Object:
    return app_of(eventbus).openapi()


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
        ("GET", "/events/{seq}", "eventbus_get_event"),
        ("GET", "/healthz", "eventbus_healthz"),
        ("GET", "/readyz", "eventbus_readyz"),
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


async def test_every_request_example_is_accepted_as_it_stands(document: Object, http: httpx.AsyncClient) -> None:
    operation = operation_of(document, "POST", "/publish")
    examples = operation.document["requestBody"]["content"]["application/json"]["examples"]
    assert len(examples) >= 6

    for name, example in examples.items():
        answer = await http.post("/publish", json=example["value"])
        assert answer.status_code == 201, (name, answer.text)
        check_answer(document, operation, answer)


async def test_every_parameter_example_is_accepted_as_it_stands(
    document: Object, eventbus: EventBus, http: httpx.AsyncClient
) -> None:
    await eventbus.publish_many([("user.created", {"id": 1}), ("chat.user1", "Hello"), ("image.added", b"\x89PNG")])
    asked = 0

    for operation in operations(document):
        for parameter in operation.document.get("parameters", []):
            for example in parameter["examples"].values():
                check(document, parameter["schema"], example["value"])
                is_path = parameter["in"] == "path"
                path = operation.path.format(**{parameter["name"]: example["value"]} if is_path else {})
                query = {} if is_path else {parameter["name"]: example["value"]}
                answer = await http.request(operation.method, path, params=query)
                assert answer.status_code == 200, (path, query, answer.text)
                check_answer(document, operation, answer)
                asked += 1

    assert asked >= 6


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

    answer = await http.request(method, request_path, json=body)

    assert answer.status_code == status, answer.text
    check_answer(document, operation_of(document, method, path), answer)


PROBLEMS: list[tuple[str, str, str, int, Object]] = [
    ("POST", "/publish", "payload.too_large", 413, {"json": {"topic": "a", "payload": "x" * 300_000}}),
    ("POST", "/publish", "batch.too_large", 413, {"json": [{"topic": "a", "payload": 1}] * 1_001}),
    ("POST", "/publish", "request.too_large", 413, {"json": "x" * 1_100_000}),
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
    ("GET", "/events/{seq}", "event.not_found", 404, {}),
    ("GET", "/events/{seq}", "request.invalid", 422, {"seq": 0}),
]


@pytest.mark.parametrize(("method", "path", "code", "status", "request_"), PROBLEMS)
async def test_a_problem_comes_as_its_example_says(
    document: Object, http: httpx.AsyncClient, method: str, path: str, code: str, status: int, request_: Object
) -> None:
    content = operation_of(document, method, path).document["responses"][str(status)]["content"]
    example = content["application/problem+json"]["examples"][code]["value"]

    seq = request_.get("seq", 17)
    options = {name: value for name, value in request_.items() if name != "seq"}
    answer = await http.request(method, path.format(seq=seq), **options)

    assert answer.json() == example


@pytest.mark.parametrize(
    ("method", "path", "broken_by", "status", "code"),
    [
        ("POST", "/publish", "DROP TABLE bus_event", 500, "store.failed"),
        ("GET", "/events", "DROP TABLE bus_event", 500, "store.failed"),
        ("GET", "/events", "DELETE FROM bus_head", 503, "store.schema"),
        ("GET", "/events/{seq}", "DROP TABLE bus_event", 500, "store.failed"),
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
    async with eventbus.engine.begin() as connection:
        await connection.exec_driver_sql(broken_by)
    body = {"topic": "a", "payload": 1} if method == "POST" else None

    answer = await http.request(method, path.format(seq=17), json=body)

    assert answer.status_code == status
    content = operation_of(document, method, path).document["responses"][str(status)]["content"]
    assert answer.json() == content["application/problem+json"]["examples"][code]["value"]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/publish"), ("GET", "/events"), ("GET", "/events/{seq}"), ("GET", "/readyz")]
)
async def test_what_a_stopped_bus_answers_is_as_documented(
    document: Object, eventbus: EventBus, http: httpx.AsyncClient, method: str, path: str
) -> None:
    await eventbus.stop()
    body = {"topic": "a", "payload": 1} if method == "POST" else None

    answer = await http.request(method, path.format(seq=1), json=body)

    assert answer.status_code == 503
    operation = operation_of(document, method, path)
    check_answer(document, operation, answer)
    examples = operation.document["responses"]["503"]["content"]["application/problem+json"]["examples"]
    assert answer.json() == examples[answer.json()["code"]]["value"]
