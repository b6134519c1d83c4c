"""Nodes: this one with its subscriptions and groups, and the processes that serve queues, wherever they run."""

from __future__ import annotations

import os
import socket

from fastapi import Response

from eventbus_fastapi.dashboard.pages.paging import page_of
from eventbus_fastapi.dashboard.visit import Visit

SHOWN = 10
"""Principals and addresses that are listed: those with the most connections."""


async def show(visit: Visit) -> Response:
    node, admission = visit.node, visit.limits.admission
    open_now = sorted(node.subscriptions, key=lambda each: (each.patterns, each.position))
    return visit.show(
        "nodes.html",
        host=socket.gethostname(),
        pid=os.getpid(),
        owner=node.consumers.owner,
        database=node.store.engine.dialect.name,
        problems=await node.problems(),
        head=await node.head(),
        dispatcher=node.dispatcher,
        connections=len(admission),
        connected={
            "Principal": admission.by_principal(SHOWN),
            "Address": admission.by_address(SHOWN),
        },
        subscriptions=page_of(open_now, visit.query),
        served=[consumer.group for consumer in node.consumers],
        workers=await node.queues.workers(),
    )
