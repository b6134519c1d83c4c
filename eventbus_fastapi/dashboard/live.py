"""The stream that keeps open pages current: server-sent events with the newest figures.

It carries figures only, no event and no payload. The script writes them where they belong, and loads anew those parts
of its page that have changed. A stream ends after a while, so that whoever reads it is looked at again.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from http import HTTPStatus

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from eventbus_fastapi.dashboard.figures import figures_of
from eventbus_fastapi.dashboard.sampler import Sampler
from eventbus_fastapi.dashboard.visit import Visit
from eventbus_fastapi.server.transport import find_transport, on_shutdown

SILENCE = 10.0
"""Seconds after which a comment is sent where there is nothing else, so that nobody takes the stream for dead."""
ROTATION = 60.0
"""Seconds after which a stream ends; the browser asks again."""
MOST_STREAMS = 100
"""Streams of a node at the same time."""
RETRY = 2_000
"""Milliseconds after which a browser asks again."""


async def live(visit: Visit) -> Response:
    """Return the stream; or that there are too many, and when to ask again."""
    if visit.sampler.watchers >= MOST_STREAMS:
        return Response(status_code=HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": "30"})
    return LiveStream(visit.sampler)


class LiveStream(StreamingResponse):
    """See the module's docstring. It ends at once where the server wants to stop, and says so."""

    def __init__(self, sampler: Sampler) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(self._events(), headers=headers, media_type="text/event-stream")
        self._sampler = sampler
        self._is_stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with on_shutdown(find_transport(receive), self._stop):
            await super().__call__(scope, receive, send)

    def _stop(self) -> None:
        self._is_stopping = True
        self._sampler.wake()

    async def _events(self) -> AsyncIterator[str]:
        sampler = self._sampler
        end = sampler.now + ROTATION
        last: dict[str, str] = {}
        with sampler.watched():
            yield f"retry: {RETRY}\n\n"
            while sampler.now < end and not self._is_stopping:
                is_new = await sampler.next(SILENCE)
                if sampler.has_ended or self._is_stopping:
                    return
                if not is_new:
                    yield ": nothing new\n\n"
                    continue
                figures = figures_of(sampler.samples)
                data = json.dumps({"figures": figures, "changed": figures != last})
                yield f"event: figures\ndata: {data}\n\n"
                last = figures
