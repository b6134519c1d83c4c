"""What all connections of a bus on this node share: kept by the bus, whatever routers it gives."""

from __future__ import annotations

from eventbus_fastapi.server.admission import Admission
from eventbus_fastapi.server.heart import Pulse
from eventbus_fastapi.server.publish_rate import PublishRate
from eventbus_fastapi.server.rounds import Rounds
from eventbus_fastapi.settings import Settings


class Limits:
    def __init__(self, settings: Settings) -> None:
        self.admission = Admission(settings)
        self.publish_rate = PublishRate(settings)
        self.rounds = Rounds()
        self.pulse = Pulse(settings.heartbeat)
