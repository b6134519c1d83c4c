"""`eventbus queues` and `eventbus workers`: how queues are served and by whom, and what can be done while they are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer
from pydantic_core import to_json

from eventbus_fastapi.cli.opening import with_store
from eventbus_fastapi.cli.options import AsJson, DatabaseUrl
from eventbus_fastapi.cli.terminal import show, show_table, visible, visible_json, warn
from eventbus_fastapi.errors import quote
from eventbus_fastapi.pipeline.queue_steward import QueueStatus, QueueSteward
from eventbus_fastapi.server.queue_objects import queue_object, worker_object
from eventbus_fastapi.settings import MOST_WORKERS
from eventbus_fastapi.store.roster import WorkerStatus

queues = typer.Typer(help="Look after queues; without a command, show how they are.", invoke_without_command=True)

T = TypeVar("T")
Name = Annotated[str, typer.Argument(help="Name of the queue.")]

QUEUES = ("queue", "workers", "processes", "busy", "groups", "")
WORKERS = ("worker", "started", "seen", "queues", "")


@queues.callback()
def list_queues(context: typer.Context, as_json: AsJson = False, database_url: DatabaseUrl = None) -> None:
    """Show all queues: workers in each process, the processes that serve it, how many workers are busy in all."""
    context.obj = database_url
    if context.invoked_subcommand is not None:
        return
    statuses = _with_steward(database_url, QueueSteward.queues)
    if as_json:
        for status in statuses:
            show(visible_json(to_json(queue_object(status)).decode()))
        return
    if not statuses:
        show("no queues")
        return
    show_table(QUEUES, [_queue_row(status) for status in statuses], numbers=range(1, 4))


@queues.command()
def pause(context: typer.Context, name: Name, database_url: DatabaseUrl = None) -> None:
    """Take nothing more for a queue, in any process. What runs goes on; what has not begun is given back."""
    _change(context, database_url, name, lambda steward: steward.pause(name))
    show(f"queue {quote(name)} is paused")


@queues.command()
def resume(context: typer.Context, name: Name, database_url: DatabaseUrl = None) -> None:
    """End the pause of a queue."""
    _change(context, database_url, name, lambda steward: steward.resume(name))
    show(f"queue {quote(name)} goes on")


@queues.command()
def scale(
    context: typer.Context,
    name: Name,
    workers: Annotated[
        str, typer.Argument(help="Events that each process handles at the same time, or: default, as its program says.")
    ],
    database_url: DatabaseUrl = None,
) -> None:
    """Change the number of workers in each process that serves a queue. What runs goes on."""
    count = _count(workers)
    _change(context, database_url, name, lambda steward: steward.scale(name, count))
    said = "as many workers as its program says" if count is None else f"{count:,} workers"
    show(f"queue {quote(name)} has {said} in each process")


def workers(as_json: AsJson = False, database_url: DatabaseUrl = None) -> None:
    """Show the processes that serve queues, and how long ago each was seen. Those that died stay for some minutes."""
    found = _with_steward(database_url, QueueSteward.workers)
    if as_json:
        for worker in found:
            show(visible_json(to_json(worker_object(worker)).decode()))
        return
    if not found:
        show("no workers")
        return
    show_table(WORKERS, [_worker_row(worker) for worker in found], numbers=(1, 2))


def _with_steward(database_url: str | None, work: Callable[[QueueSteward], Awaitable[T]]) -> T:
    return with_store(database_url, lambda store, _: work(QueueSteward(store)))


def _change(
    context: typer.Context, database_url: str | None, name: str, work: Callable[[QueueSteward], Awaitable[None]]
) -> None:
    async def change(steward: QueueSteward) -> QueueStatus:
        await work(steward)
        return await steward.queue(name)

    # `eventbus queues --database-url … pause x` gives the URL to the command before.
    if _with_steward(database_url or context.obj, change).processes == 0:
        warn(f"no process serves queue {quote(name)} now")


def _count(text: str) -> int | None:
    if text == "default":
        return None
    if text.isdecimal() and len(text) <= len(str(MOST_WORKERS)) and 1 <= int(text) <= MOST_WORKERS:
        return int(text)
    raise typer.BadParameter(f"workers: expected 1 to {MOST_WORKERS:,} or default, got {quote(text)}")


def _queue_row(status: QueueStatus) -> tuple[str, ...]:
    said = [word for word, is_so in (("scaled", status.is_scaled), ("paused", status.is_paused)) if is_so]
    return (
        visible(status.name),
        "" if status.workers is None else f"{status.workers:,}",
        f"{status.processes:,}",
        f"{status.busy:,}",
        visible(" ".join(status.groups)),
        " ".join(said),
    )


def _worker_row(worker: WorkerStatus) -> tuple[str, ...]:
    running = (worker.seen_at - worker.started_at) / 1_000_000 + worker.age
    served = (f"{name} {each.busy}/{each.workers}" + " paused" * each.is_paused for name, each in worker.queues.items())
    return (
        visible(worker.id),
        f"{running:,.0f} s ago",
        f"{worker.age:,.0f} s ago",
        visible(", ".join(served)),
        "" if worker.is_alive else "silent",
    )
