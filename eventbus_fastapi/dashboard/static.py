"""The files that pages load: one sheet of styles, one script, one icon. Read once."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fastapi import Request, Response

from eventbus_fastapi.errors import NotFound

FILES = {
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


class File(NamedTuple):
    content: bytes
    etag: str


def answer(request: Request, name: str) -> Response:
    """Return a file, or that the browser has it already."""
    if name not in FILES:
        raise NotFound("there is no such file")
    file = _read(name)
    headers = {"Cache-Control": "no-cache", "ETag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=FILES[name])


@cache
def _read(name: str) -> File:
    content = (Path(__file__).with_name("static") / name).read_bytes()
    return File(content, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
