"""Settings: from the environment or keywords; a typo or a wrong value never becomes a default."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from eventbus_fastapi import settings as module
from eventbus_fastapi.errors import SettingsError
from eventbus_fastapi.settings import QueueSettings, Settings, refuse_unknown


def refusal(**values: Any) -> str:
    with pytest.raises(SettingsError) as refused:
        Settings(**values)
    return str(refused.value)


def test_without_anything_the_bus_is_a_sqlite_file() -> None:
    assert Settings().database_url == "sqlite+aiosqlite:///eventbus.db"


def test_the_environment_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTBUS_DATABASE_URL", "postgresql+asyncpg://db/app")
    monkeypatch.setenv("EVENTBUS_POLL_ONLY", "true")
    monkeypatch.setenv("EVENTBUS_RETENTION_AGE", "3600.5")
    settings = Settings()
    assert settings.database_url == "postgresql+asyncpg://db/app"
    assert settings.poll_only is True
    assert settings.retention_age == 3600.5


def test_a_keyword_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTBUS_PORT", "4000")
    assert Settings(port=5000).port == 5000


def test_a_typo_in_the_environment_is_refused_with_the_right_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTBUS_DATABSE_URL", "sqlite+aiosqlite://")
    assert refusal() == "unknown setting EVENTBUS_DATABSE_URL; did you mean EVENTBUS_DATABASE_URL?"


@pytest.mark.parametrize(
    ("variable", "meant"),
    [("EVENTBUS_LEASE_TLL", "EVENTBUS_LEASE_TTL"), ("EVENTBUS_DB_URL", "EVENTBUS_DATABASE_URL")],
)
def test_the_nearest_name_is_suggested(variable: str, meant: str) -> None:
    with pytest.raises(SettingsError, match=rf"^unknown setting {variable}; did you mean {meant}\?$"):
        refuse_unknown([variable], ["lease_ttl", "database_url", "db_schema", "port"])


def test_a_typo_in_lower_case_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("eventbus_prot", "1")
    assert refusal() == "unknown setting eventbus_prot; did you mean EVENTBUS_PORT?"


def test_a_name_like_no_setting_is_refused_without_a_guess() -> None:
    with pytest.raises(SettingsError, match=r"^unknown setting EVENTBUS_QQQQQQQQ$"):
        refuse_unknown(["EVENTBUS_QQQQQQQQ"], ["port"])


def test_variables_for_the_tests_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTBUS_TEST_POSTGRES_URL", "postgresql://localhost")
    Settings()


def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTBUSES", "1")
    monkeypatch.setenv("MY_EVENTBUS_PORT", "1")
    Settings()


def test_a_typo_in_a_keyword_is_refused_with_the_right_name() -> None:
    assert refusal(max_paylod=1) == "unknown setting max_paylod; did you mean max_payload?"


def test_a_wrong_value_is_refused_with_name_and_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTBUS_PORT", "http")
    message = refusal()
    assert message.startswith("setting port (EVENTBUS_PORT): Input should be a valid integer")
    assert message.endswith(", got 'http'")


def test_a_value_out_of_range_is_refused_with_the_range() -> None:
    assert refusal(pool_size=1) == (
        "setting pool_size (EVENTBUS_POOL_SIZE): Input should be greater than or equal to 3, got 1"
    )


def test_all_wrong_values_are_named_at_once() -> None:
    message = refusal(poll_interval=0, overflow="block")
    assert "poll_interval" in message
    assert "'catch_up', 'disconnect' or 'drop_oldest', got 'block'" in message


@pytest.mark.parametrize("prefix", ["", "1bus_", "Bus_", 'bus"; drop table', "b" * 31, "bus_\n"])
def test_a_table_prefix_that_is_no_plain_name_is_refused(prefix: str) -> None:
    assert refusal(table_prefix=prefix).startswith("setting table_prefix (EVENTBUS_TABLE_PREFIX): ")


@pytest.mark.parametrize("source", ["", "a b", "/größe", "x" * 256, "a\n"])
def test_a_source_of_cloudevents_that_is_no_uri_reference_is_refused(source: str) -> None:
    assert refusal(cloudevents_source=source).startswith("setting cloudevents_source (EVENTBUS_CLOUDEVENTS_SOURCE): ")


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


def test_a_copy_with_changes_keeps_the_rest_and_is_validated() -> None:
    settings = Settings(port=4000, table_prefix="my_")
    assert settings.replace(port=5000) == Settings(port=5000, table_prefix="my_")
    with pytest.raises(SettingsError, match="setting port"):
        settings.replace(port=-1)


def test_queues_are_a_json_object_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    said = '{"email": {"workers": 5, "archive": "failed"}, "audit": {"poll_interval": 60}}'
    monkeypatch.setenv("EVENTBUS_QUEUES", said)
    settings = Settings()
    assert settings.queues == {
        "email": QueueSettings(workers=5, archive="failed"),
        "audit": QueueSettings(poll_interval=60),
    }
    assert settings.replace(port=1).queues == settings.queues


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("email", "setting queues (EVENTBUS_QUEUES): expected a JSON object, got 'email'"),
        ("[]", "setting queues (EVENTBUS_QUEUES): Input should be a valid dictionary, got []"),
        ('{"email": {"wrokers": 5}}', "unknown setting queues.email.wrokers; did you mean workers?"),
        ('{"email": {"workers": 0}}', "setting queues.email.workers (EVENTBUS_QUEUES): Input should be greater than"),
        ('{"email": {"workers": "5"}}', "setting queues.email.workers (EVENTBUS_QUEUES): Input should be a valid int"),
        ('{"email": {"batch_size": 1001}}', "Input should be less than or equal to 1000, got 1001"),
        ('{"email": {"poll_interval": 0.01}}', "Input should be greater than or equal to 0.05, got 0.01"),
        ('{"email": {"archive": "some"}}', "Input should be 'all', 'failed' or 'none', got 'some'"),
        ('{"email": 5}', "setting queues.email (EVENTBUS_QUEUES): Input should be a valid dictionary"),
    ],
)
def test_a_queue_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, said: str, expected: str) -> None:
    monkeypatch.setenv("EVENTBUS_QUEUES", said)
    assert expected in refusal()


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_no_duration_is_infinite_or_no_number(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("EVENTBUS_WORKER_GRACE", value)
    assert "setting worker_grace (EVENTBUS_WORKER_GRACE): " in refusal()


# --- documentation -------------------------------------------------------------------------------


def docstrings() -> dict[str, str]:
    """The text below each setting, as the source has it."""
    (tree,) = ast.parse(inspect.getsource(Settings)).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            texts[field.target.id] = " ".join(str(below.value.value).split())
    return texts


def meant(text: str) -> object:
    """The value that a docstring's words stand for: `256 KiB` is 262144."""
    size = re.fullmatch(r"(\d+) (KiB|MiB)", text)
    if size:
        return int(size[1]) * {"KiB": 1 << 10, "MiB": 1 << 20}[size[2]]
    try:
        return ast.literal_eval(text.replace(",", ""))
    except (SyntaxError, ValueError):
        return text.strip("`")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_says_what_it_is_and_what_it_defaults_to(name: str) -> None:
    said = re.search(r"^.+ Defaults to (.+)\.$", docstrings()[name])
    assert said, f"{name} has no 'Defaults to'"
    default = Settings.model_fields[name].default
    if name == "database_url":
        assert default == "sqlite+aiosqlite:///eventbus.db"
        assert said[1] == "the file eventbus.db in the working directory"
    else:
        assert meant(said[1]) == default


def test_every_overflow_policy_is_described() -> None:
    policies = Settings.model_fields["overflow"].annotation
    below = inspect.getsource(module).split("Overflow = ", 1)[1]
    assert re.findall(r"^- `(\w+)`:", below, re.MULTILINE) == list(get_args(policies))
