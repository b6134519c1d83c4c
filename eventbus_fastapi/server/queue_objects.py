"""The JSON of queues and of the processes that serve them: the same over HTTP and on the command line."""

from __future__ import annotations

from eventbus_fastapi.pipeline.queue_steward import QueueStatus
from eventbus_fastapi.server.group_objects import Object, time_text
from eventbus_fastapi.store.roster import WorkerStatus


def queue_object(status: QueueStatus) -> Object:
    """Return how a queue is."""
    return {
        "name": status.name,
        "workers": status.workers,
        "scaled": status.is_scaled,
        "paused": status.is_paused,
        "processes": status.processes,
        "busy": status.busy,
        "groups": status.groups,
    }


def worker_object(worker: WorkerStatus) -> Object:
    """Return how a process is that serves queues."""
    return {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "started_at": time_text(worker.started_at),
        "seen_at": time_text(worker.seen_at),
        "age": worker.age,
        "alive": worker.is_alive,
        "queues": {
            name: {"workers": each.workers, "busy": each.busy, "paused": each.is_paused, "groups": each.groups}
            for name, each in worker.queues.items()
        },
    }
