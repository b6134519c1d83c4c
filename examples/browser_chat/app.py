"""A chat in the browser: a page, and the bus that it talks to.

uvicorn app:app --port 3000                     # in the file eventbus.db, or EVENTBUS_DATABASE_URL
"""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse

from eventbus_fastapi import EventBus

PAGE = Path(__file__).parent / "chat.html"

eventbus = EventBus()  # settings come from the environment
app = FastAPI(title="Chat")
app.include_router(eventbus.router())  # /ws, and /client.js, which the page imports


@app.get("/", include_in_schema=False)
async def page() -> FileResponse:
    return FileResponse(PAGE)
