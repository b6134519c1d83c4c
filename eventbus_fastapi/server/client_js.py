"""`/client.js`: the client for browsers, as it is in static/client.js.

It is for whoever asks, also for modules of pages of other origins: what it may do is decided where it connects to.
"""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from importlib import resources

from fastapi import Request, Response

MEDIA_TYPE = "text/javascript; charset=utf-8"


class ClientScript:
    """The text, read once."""

    def __init__(self) -> None:
        self._content = resources.files(__package__).joinpath("static", "client.js").read_bytes()
        self._headers = {
            "ETag": f'"{hashlib.sha256(self._content).hexdigest()[:32]}"',
            "Cache-Control": "no-cache",  # kept, and asked for by its ETag each time: it belongs to this server
            "X-Content-Type-Options": "nosniff",
            "Access-Control-Allow-Origin": "*",
            "Cross-Origin-Resource-Policy": "cross-origin",
        }

    async def client_js(self, request: Request) -> Response:
        """Answer with the text, or with 304 where the browser has it already."""
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if self._headers["ETag"] in known or "*" in known:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=self._headers)
        return Response(self._content, headers=self._headers, media_type=MEDIA_TYPE)
