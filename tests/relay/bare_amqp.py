"""An AMQP client that adds nothing to a message: aio-pika gives each a message_id, other clients do not."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from pamqp import commands, frame
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader, ProtocolHeader


def send(url: str, queue: str, bodies: list[bytes]) -> None:
    """Send messages that say nothing but their bodies, and wait until the broker has them."""
    parts = urlsplit(url)
    login = f"\0{parts.username or 'guest'}\0{parts.password or 'guest'}"
    with socket.create_connection((parts.hostname, parts.port or 5672), 10) as connection:
        client = _Client(connection)
        connection.sendall(ProtocolHeader().marshal())
        client.ask(None, commands.Connection.Start)
        client.ask(commands.Connection.StartOk({}, "PLAIN", login, "en_US"), commands.Connection.Tune)
        client.say(commands.Connection.TuneOk(2_047, 131_072, 0), 0)
        client.ask(commands.Connection.Open(parts.path[1:] or "/"), commands.Connection.OpenOk)
        client.ask(commands.Channel.Open(), commands.Channel.OpenOk, channel=1)
        for body in bodies:
            client.say(commands.Basic.Publish(exchange="", routing_key=queue), 1)
            client.say(ContentHeader(body_size=len(body), properties=commands.Basic.Properties()), 1)
            client.say(ContentBody(body), 1)
        client.ask(commands.Channel.Close(200, "done", 0, 0), commands.Channel.CloseOk, channel=1)
        client.ask(commands.Connection.Close(200, "done", 0, 0), commands.Connection.CloseOk)


class _Client:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._read = b""

    def say(self, said: Frame | ContentHeader | ContentBody, channel: int) -> None:
        self._connection.sendall(frame.marshal(said, channel))

    def ask(self, said: Frame | None, answer: type[Frame], *, channel: int = 0) -> None:
        if said is not None:
            self.say(said, channel)
        while True:
            size, _, got = frame.unmarshal(self._read) if len(self._read) > 7 and self._is_whole() else (0, 0, None)
            if got is not None:
                self._read = self._read[size:]
                if isinstance(got, answer):
                    return
                raise AssertionError(f"expected {answer.__name__}, got {got!r}")
            chunk = self._connection.recv(65_536)
            assert chunk, "the broker closed the connection"
            self._read += chunk

    def _is_whole(self) -> bool:
        return len(self._read) >= 8 + int.from_bytes(self._read[3:7], "big")
