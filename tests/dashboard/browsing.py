"""A browser without a screen: it keeps cookies, follows links, and fills in the forms that it was shown."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode

import httpx

HOST = "127.0.0.1:3000"
ORIGIN = f"http://{HOST}"
FORM = {"content-type": "application/x-www-form-urlencoded"}


class Form:
    """A form of a page: where it goes, and what is in it."""

    def __init__(self, action: str, method: str) -> None:
        self.action = action
        self.method = method
        self.fields: list[tuple[str, str]] = []


class Page(HTMLParser):
    """What a page has in it."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.forms: list[Form] = []
        self.links: list[str] = []
        self.elements: list[tuple[str, Mapping[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.elements.append((tag, given))
        if tag == "form":
            self.forms.append(Form(given["action"], given["method"]))
        elif tag == "a":
            self.links.append(given["href"])
        elif tag == "input" and given.get("type") == "hidden":
            self.forms[-1].fields.append((given["name"], given["value"]))

    def handle_data(self, data: str) -> None:
        self.text += data

    def form(self, action: str) -> Form:
        """Return the one form that goes to a page."""
        (found,) = [form for form in self.forms if form.action.endswith(f"/{action}")]
        return found


class Browser:
    """See the module's docstring."""

    def __init__(self, http: httpx.AsyncClient, base: str = "/dashboard") -> None:
        self.http = http
        self.base = base

    async def get(self, page: str = "", **options: Any) -> httpx.Response:
        return await self.http.get(f"{self.base}/{page}" if page else self.base, **options)

    async def see(self, page: str = "") -> Page:
        """Return a page that is there."""
        answer = await self.get(page)
        assert answer.status_code == 200, answer.text
        return Page(answer.text)

    async def token(self) -> str:
        """Return the token that forms have for this browser."""
        return dict((await self.see("publish")).form("publish").fields)["token"]

    async def post(self, action: str, fields: Mapping[str, Any], **headers: str) -> httpx.Response:
        """Send a form as a browser does that has its token, and do not follow where it leads."""
        given = {"token": await self.token(), **fields} if "token" not in fields else dict(fields)
        body = urlencode({name: value for name, value in given.items() if value is not None}, doseq=True)
        return await self.http.post(
            f"{self.base}/{action}", content=body, headers={**FORM, "origin": ORIGIN, **headers}
        )


@contextlib.asynccontextmanager
async def browsing(
    app: Any, *, client: tuple[str, int] = ("127.0.0.1", 50_000), base_url: str = ORIGIN, base: str = "/dashboard"
) -> AsyncIterator[Browser]:
    """Give a browser at an address. The app's lifespan is not run: start the bus yourself."""
    transport = httpx.ASGITransport(app, client=client)
    async with httpx.AsyncClient(transport=transport, base_url=base_url) as http:
        yield Browser(http, base)
