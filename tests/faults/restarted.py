"""What `rolling_restart` restarts: `eventbus worker tests.faults.restarted:eventbus`, or uvicorn with `app`.

Its handlers take down what they handle, as those of `handling`.
"""

from __future__ import annotations

import os

from fastapi import FastAPI

from tests.faults.handling import make_bus

eventbus = make_bus(f"process-{os.getpid()}", workers=4)
app = FastAPI()
app.include_router(eventbus.router())
