"""A visit: one request to a page, with what the page needs to answer it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from eventbus_fastapi.auth import EVERYONE, Principal
from eventbus_fastapi.dashboard import forms
from eventbus_fastapi.dashboard.entrance import Visitor
from eventbus_fastapi.dashboard.forms import Fields
from eventbus_fastapi.dashboard.rendering import environment, link
from eventbus_fastapi.dashboard.sampler import Sampler
from eventbus_fastapi.errors import EventBusError, NotRunning
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.server.limits import Limits

NOTICES = {
    "paused": "Paused. What is in flight may still be settled.",
    "resumed": "Resumed.",
    "reset": "Reset. It reads on after seq {count}.",
    "scaled": "Scaled. Processes follow within about a second.",
    "published": "Published. It has seq {count}.",
    "duplicate": "Nothing was stored: it was published before.",
    "waiting": "Stored. It enters the log when its time has come.",
    "live": "Given to the live subscriptions of this node, and not stored.",
    "retried": "To be tried again at once: {count}.",
    "discarded": "Discarded: {count}.",
    "limited": "Changed. It holds on every node at once.",
}
"""What a page says at its top after something was done. Only these: an address must not put words into our mouth."""


@dataclass
class Visit:
    """See the module's docstring."""

    request: Request
    node: Node
    sampler: Sampler
    limits: Limits
    """Of this node: the connections to it, and how fast one may publish."""
    base: str
    """The path of the dashboard as the browser sees it, without a slash at its end."""
    page: str
    """What of the path follows."""
    query: Fields
    form: Fields
    """Empty, unless it is a POST."""
    secret: str
    """Of this browser, for the tokens of its forms."""
    visitor: Visitor | None
    """None: nobody has come in; only the login is shown."""

    @property
    def principal(self) -> Principal:
        """Who does something, for the limits of those who do."""
        return EVERYONE if self.visitor is None else self.visitor.principal

    def show(self, template: str, status: int = 200, *, error: EventBusError | None = None, **content: Any) -> Response:
        """Return a page. With an error, it says at its top what is wrong, and of a form whether it was done."""
        visitor = self.visitor
        html = (
            environment()
            .get_template(template)
            .render(
                base=self.base,
                page=self.page,
                visitor=visitor,
                token=forms.token_of(self.secret, "" if visitor is None else visitor.name),
                link=self.link,
                notice=self._notice(),
                error=error,
                is_change=self.request.method == "POST",
                is_unchanged=error is None or error.status < 500 or isinstance(error, NotRunning),
                now=self.node.store.estimate_now(),
                **content,
            )
        )
        return HTMLResponse(html, error.status if error is not None else status)

    def link(self, page: str, /, **query: Any) -> str:
        """Return the address of a page."""
        return link(f"{self.base}/{page}" if page else self.base, **query)

    def go(self, page: str, done: str, count: int | None = None, /, **query: Any) -> Response:
        """Send the browser to a page, after something was done."""
        return RedirectResponse(self.link(page, done=done, count=count, **query), 303)

    def _notice(self) -> str | None:
        given: Mapping[str, str] = self.query.as_typed()
        count = given.get("count", "")
        text = NOTICES.get(given.get("done", ""))
        if text is None or ("{count}" in text and not (count.isascii() and count.isdecimal() and len(count) < 20)):
            return None
        return text.format(count=f"{int(count):,}" if "{count}" in text else "")
