"""Tracing: the trace of an event from its publisher to those who handle it, over OpenTelemetry's API.

    publish ──▶ metadata: traceparent, tracestate ──▶ handle      (a handler of a worker, or of `client.consume`)
                                                 └──▶ deliver     (from the server to a client, until it is settled)

The context travels as W3C says, in the event's metadata: through the outbox, the log and the wire, to whoever reads
it. What a publisher has put there wins. Names and attributes are those of OpenTelemetry's conventions for messaging.

Without a tracer provider there is no span, and asking whether there is one costs a look at the clock. Nothing of
OpenTelemetry is imported before the first event, and it need not be installed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from eventbus_fastapi.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from eventbus_fastapi.telemetry.spans import Spans

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
"""Where the metadata of an event has its context."""
LOOK_EVERY = 1.0
"""Seconds between two looks whether the program has a tracer provider by now, while it has none."""


class Tracing:
    """See the module's docstring.

    Args:
        provider: an OpenTelemetry `TracerProvider`; None: the program's own, once it has set one.
        is_wanted: False: there never is a span.
    """

    def __init__(self, provider: TracerProvider | None = None, *, is_wanted: bool = True) -> None:
        self._provider = provider
        self._spans: Spans | None = None
        self._look_at = 0.0 if is_wanted else float("inf")

    def spans(self) -> Spans | None:
        """Return what makes spans; None: nobody wants any."""
        if self._spans is None and (now := time.monotonic()) >= self._look_at:
            self._look_at = now + LOOK_EVERY
            self._spans = self._find()
        return self._spans

    def _find(self) -> Spans | None:
        try:
            from opentelemetry import trace
        except ModuleNotFoundError:
            self._look_at = float("inf")
            return None
        provider = self._provider or trace.get_tracer_provider()
        if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
            return None
        from eventbus_fastapi.telemetry.spans import Spans

        return Spans(provider.get_tracer("eventbus_fastapi", VERSION))
