"""The metrics port: a port of a process's own where it is scraped, in a thread of its own.

For processes that serve nothing else, and for those that share the port of their app: a scrape of that port reaches any
one of them. Of several, each takes the first port that is free, so a list of as many ports finds all.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from typing import Any

from prometheus_client import make_wsgi_app, start_http_server

from eventbus_fastapi.errors import SettingsError
from eventbus_fastapi.server.metrics import ForwarderMetrics, Metrics, understood

logger = logging.getLogger(__name__)

MOST_PROCESSES = 64
"""Ports that are tried: one for each process on a machine."""


class MetricsPort:
    """See the module's docstring. Open from the beginning.

    Raises:
        SettingsError: no port can be had.
    """

    def __init__(self, metrics: Metrics | ForwarderMetrics, host: str, port: int) -> None:
        for tried in range(port, min(port + MOST_PROCESSES, 65_536) if port else 1):
            try:
                self._server, self._thread = start_http_server(tried, host, metrics.registry)
                break
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise SettingsError(f"cannot serve metrics on {host} port {tried}: {exc.strerror or exc}") from exc
        else:
            raise SettingsError(f"cannot serve metrics on {host}: no port is free from {port} on")
        self._server.set_app(_app_of(metrics))
        self.port: int = self._server.server_port
        logger.info("serving metrics on %s port %d", host, self.port)

    async def close(self) -> None:
        """Answer no more."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        await asyncio.to_thread(self._thread.join)


def _app_of(metrics: Metrics | ForwarderMetrics) -> Callable[..., Any]:
    """Return the library's own application, but for requests that it would fail at, with a traceback on stderr."""
    app = make_wsgi_app(metrics.registry)

    def answer(environ: dict[str, Any], start_response: Any) -> Any:
        return app({**environ, "HTTP_ACCEPT": understood(environ.get("HTTP_ACCEPT", ""))}, start_response)

    return answer
