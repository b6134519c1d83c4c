"""What the bus answers about itself: the AsyncAPI document, for programs and as a page for people."""

# Annotations are evaluated here: FastAPI reads those of the endpoints.
from fastapi import Request, Response
from fastapi.responses import HTMLResponse

from eventbus_fastapi.server.asyncapi import AsyncAPI, Place
from eventbus_fastapi.server.asyncapi_page import HEADERS, page
from eventbus_fastapi.server.bodies import json_answer

DOCUMENT_PATH = "/asyncapi.json"
PAGE_PATH = "/asyncapi"


class AsyncAPIEndpoints:
    """The HTTP endpoints of one bus that describe it."""

    def __init__(self, asyncapi: AsyncAPI) -> None:
        self._asyncapi = asyncapi

    async def asyncapi_json(self, request: Request) -> Response:
        """Describe the frames of the WebSocket, the topics and the handlers, as AsyncAPI 3."""
        return json_answer(self._asyncapi.text(Place.of(request, DOCUMENT_PATH)))

    async def asyncapi_page(self, request: Request) -> Response:
        """Show the AsyncAPI document to people."""
        return HTMLResponse(page(self._asyncapi.document(Place.of(request, PAGE_PATH))), headers=HEADERS)
