"""docker-compose.yml and what it mounts: what can be known of it without Docker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from eventbus_fastapi.settings import Settings
from tests.processes import CHECKOUT

COMPOSE: dict[str, Any] = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def of(*profiles: str) -> set[str]:
    """Return the services that start with these profiles."""
    return {name for name, service in SERVICES.items() if set(service["profiles"]) & set(profiles)}


@pytest.mark.parametrize(
    ("profile", "services"),
    [
        ("postgres", {"bus", "migrate", "postgres"}),
        ("cluster", {"bus-1", "bus-2", "migrate", "postgres", "nats", "nginx"}),
        ("observability", {"prometheus", "grafana"}),
        ("tests", {"postgres", "mariadb"}),
    ],
)
def test_a_profile_starts_what_it_is_about(profile: str, services: set[str]) -> None:
    assert of(profile) == services


@pytest.mark.parametrize("profile", ["postgres", "cluster", "tests"])
def test_what_a_service_waits_for_is_in_its_profiles(profile: str) -> None:
    started = of(profile)

    for name in started:
        assert set(SERVICES[name].get("depends_on", {})) <= started, name


def test_what_is_mounted_exists() -> None:
    mounted = [
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", ())
        if volume[0] == "."
    ]

    assert len(mounted) == 6
    assert all((CHECKOUT / path).is_file() for path in mounted)


def test_every_port_is_of_this_machine_alone() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]

    assert len(ports) == 6
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_two_services_of_a_profile_want_the_same_port() -> None:
    for profiles in (["postgres", "observability"], ["cluster", "observability"], ["postgres", "tests"]):
        ports = [port.split(":")[1] for name in of(*profiles) for port in SERVICES[name].get("ports", ())]
        assert len(ports) == len(set(ports)), profiles


@pytest.mark.parametrize("service", ["bus", "bus-1", "bus-2", "migrate"])
def test_a_node_gets_settings_that_there_are(service: str) -> None:
    environment = {
        name.removeprefix("EVENTBUS_").lower(): value
        for name, value in SERVICES[service]["environment"].items()
        if name.startswith("EVENTBUS_")
    }

    assert set(environment) <= set(Settings.model_fields)
    assert Settings(**environment).insecure


def test_prometheus_asks_every_node() -> None:
    found = yaml.safe_load((CHECKOUT / "examples/observability/compose/prometheus.yml").read_text())

    names = found["scrape_configs"][0]["dns_sd_configs"][0]["names"]
    assert set(names) == of("postgres", "cluster") & {"bus", "bus-1", "bus-2"}


def test_nginx_passes_on_to_every_node() -> None:
    config = Path(CHECKOUT / "examples/cluster/nginx.conf").read_text()

    assert [line.split()[1] for line in config.splitlines() if line.strip().startswith("server bus")] == [
        "bus-1:3000;",
        "bus-2:3000;",
    ]
