"""fastapi_websocket_pubsub, in the environment of `peers.txt`: `python pubsub_peer.py turns` or `serve PORT`.

By turns it has its server publish so many events to its 20 clients, which are in one process, and prints how many
deliveries a second there were. It imports nothing of the bus.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import time
import urllib.request
from asyncio.subprocess import DEVNULL, PIPE
from typing import Any

CLIENTS = 20
TOPIC = "bench.fanout"
PAYLOAD = {"id": 1_234_567, "username": "someone", "email": "someone@example.org", "note": "y" * 122}


def serve(port: int) -> None:
    import uvicorn
    from fastapi import FastAPI
    from fastapi_websocket_pubsub import PubSubEndpoint

    threading.Thread(target=end_with_stdin, daemon=True).start()  # whoever wants it may be killed
    app = FastAPI()
    endpoint = PubSubEndpoint()
    endpoint.register_route(app, "/pubsub")

    @app.post("/burst")
    async def burst(events: int) -> str:
        for _ in range(events):
            await endpoint.publish([TOPIC], PAYLOAD)
        return "published"

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


def post(url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=300) as answer:
        answer.read()


async def turns() -> None:
    from fastapi_websocket_pubsub import PubSubClient

    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    server = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "serve", str(port), stdin=PIPE, stdout=DEVNULL
    )
    try:
        await until_it_answers(port)
        left, done = 0, asyncio.Event()

        async def note(data: Any, topic: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                done.set()

        clients = []
        for _ in range(CLIENTS):
            client = PubSubClient()
            client.subscribe(TOPIC, note)
            client.start_client(f"ws://127.0.0.1:{port}/pubsub")
            await client.wait_until_ready()
            clients.append(client)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            events = int(line)
            left = events * CLIENTS
            done.clear()
            began = time.perf_counter()
            publishing = asyncio.create_task(asyncio.to_thread(post, f"http://127.0.0.1:{port}/burst?events={events}"))
            await done.wait()
            print(json.dumps(events * CLIENTS / (time.perf_counter() - began)), flush=True)
            await publishing
        for client in clients:
            await client.disconnect()
    finally:
        server.kill()
        await server.wait()


async def until_it_answers(port: int) -> None:
    for _ in range(300):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        writer.close()
        return
    raise TimeoutError("the server does not answer")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        asyncio.run(turns())
