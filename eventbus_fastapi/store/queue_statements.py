"""The SQL statements of queues and of the processes that serve them. Nothing here executes; see `statements`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Delete, Insert, Integer, Update, bindparam, delete, func, insert, select, update

from eventbus_fastapi.store.schema import Tables
from eventbus_fastapi.store.statements import Query, now_micros


class QueueStatements:
    """The statements over one set of tables. Durations are microseconds."""

    def __init__(self, tables: Tables) -> None:
        queue, worker = tables.queue, tables.worker
        now = now_micros()
        named = queue.c.name == bindparam("queue")
        count = bindparam("count", type_=Integer)

        # --- what operators have said; parameters: queue, count ---
        self.read_queues: Query = select(queue.c.name, queue.c.workers, queue.c.paused_at.is_not(None)).order_by(
            queue.c.name
        )
        self.pause_queue: Update = update(queue).where(named).values(paused_at=func.coalesce(queue.c.paused_at, now))
        self.add_paused: Insert = insert(queue).values(name=bindparam("queue"), paused_at=now).inline()
        self.resume_queue: Update = update(queue).where(named).values(paused_at=None)
        self.scale_queue: Update = update(queue).where(named).values(workers=count)
        self.add_scaled: Insert = insert(queue).values(name=bindparam("queue"), workers=count).inline()
        self.remove_queue: Delete = delete(queue).where(named, queue.c.workers.is_(None), queue.c.paused_at.is_(None))
        """Of which nothing is said any more."""

        # --- who serves ---
        itself = worker.c.id == bindparam("worker")
        age = bindparam("age", type_=BigInteger)
        self.read_workers: Query = select(
            *(worker.c[name] for name in ("id", "host", "pid", "started_at", "seen_at", "queues")), now.label("now")
        ).order_by(worker.c.host, worker.c.started_at, worker.c.id)
        self.see_worker: Update = update(worker).where(itself).values(seen_at=now, queues=bindparam("served"))
        """Parameters: worker, served."""
        self.add_worker: Insert = (
            insert(worker)
            .values(
                id=bindparam("worker"),
                host=bindparam("host"),
                pid=bindparam("pid"),
                started_at=now - age,
                seen_at=now,
                queues=bindparam("served"),
            )
            .inline()
        )
        """Parameters: worker, host, pid, age, served."""
        self.remove_worker: Delete = delete(worker).where(itself)
        self.remove_silent: Delete = delete(worker).where(worker.c.seen_at < now - age)
        """Those that were not seen for longer than `age`."""
