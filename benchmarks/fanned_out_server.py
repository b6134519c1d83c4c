"""A node of the fan-out benchmark: `EVENTBUS_…=… python -m benchmarks.fanned_out_server PORT`."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI, Response

from benchmarks.fanout_server import TOPIC, publish_evenly
from benchmarks.measuring import PAYLOAD
from eventbus_fastapi import EventBus, Settings


def make_app() -> FastAPI:
    eventbus = EventBus(settings=Settings())
    app = FastAPI()
    app.include_router(eventbus.router())

    @app.post("/even")
    async def even(events: int, rate: float) -> str:
        await publish_evenly(lambda payload: eventbus.publish(TOPIC, payload), events, rate)
        return "published"

    @app.post("/batches")
    async def batches(events: int, size: int) -> str:
        for _ in range(0, events, size):
            await eventbus.publish_many([(TOPIC, PAYLOAD)] * size)
        return "published"

    @app.get("/fanned-out")
    async def fanned_out(response: Response) -> int:
        """Say how many pages of the log were read; 503 while a stream that is to be there is not."""
        fanout = eventbus.node.fanout
        if fanout is not None and not fanout.is_alive:
            response.status_code = 503
        return eventbus.node.store.pages_read

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="error", ws_ping_interval=None)
