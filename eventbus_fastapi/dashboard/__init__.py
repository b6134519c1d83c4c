"""The dashboard: pages that show a bus to people, and let them look after it. It is part of `EventBus.router()`.

    request ─▶ entrance (who?) ─▶ site (which page? is the form ours?) ─▶ page ─▶ node ─▶ template ─▶ HTML

Pages are made here, on the server, with Jinja2 (extra `dashboard`); a script of ours keeps them current and is not
needed for anything. What a stranger wrote is shown as text, in `shown`. `sampler` collects what the plots show, and
`live` tells open pages of it. A page of `pages` asks the node, as the routes of HTTP do; nothing here knows the store.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from eventbus_fastapi.auth import Gate
from eventbus_fastapi.errors import SettingsError
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.server.limits import Limits
from eventbus_fastapi.settings import Settings

if TYPE_CHECKING:
    from eventbus_fastapi.dashboard.site import Dashboard


def has_dashboard(settings: Settings) -> bool:
    """Say whether a bus with these settings has a dashboard, as far as what is installed allows."""
    wanted = settings.dashboard
    return wanted == "on" or (wanted == "auto" and find_spec("jinja2") is not None)


def open_dashboard(node: Node, gate: Gate, limits: Limits) -> Dashboard | None:
    """Return the dashboard of a node, for those whom the gate knows; None: the settings, or what is installed, want
    none.

    Raises:
        SettingsError: the settings want one, and Jinja2 is not installed.
    """
    if not has_dashboard(node.settings):
        return None
    try:
        from eventbus_fastapi.dashboard.site import Dashboard
    except ModuleNotFoundError as exc:
        if exc.name not in ("jinja2", "markupsafe"):
            raise
        raise SettingsError("dashboard=on needs Jinja2: pip install 'eventbus-fastapi[dashboard]'") from exc
    return Dashboard(node, gate, limits)
