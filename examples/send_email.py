"""E-mails are sent by workers: from queues, with retries, a timeout and a backoff.

    python examples/send_email.py                   # Ctrl-C ends it, and waits 60 seconds for what is being sent

A handler is a typed function or class that is called with each event of its pattern. It is tried again after it has
failed, and each handler is a group of its own: one that fails never repeats another.
"""

import asyncio
import signal
import tempfile
from datetime import timedelta
from typing import Annotated

from fastapi import Depends
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from eventbus_fastapi import Attempt, Event, EventBus, Sequence


class SendEmail(Event, topic="email.requested"):
    to: str
    subject: str


class Report(Event, topic="report.requested"):
    name: str


class Mailer:
    """Stands for what sends e-mails; the first one of each address fails."""

    def __init__(self, server: str) -> None:
        self.server = server

    async def send(self, to: str, subject: str, attempt: int) -> None:
        if to.startswith("first") and attempt == 1:
            raise ConnectionError(f"{self.server} did not answer")
        print(f"sent {subject!r} to {to} by {self.server}, attempt {attempt}")


class Smtp(BaseModel):
    host: str = "smtp.example"


async def get_smtp() -> Smtp:
    return Smtp()


def wire(eventbus: EventBus) -> None:
    """Register the handlers, and say how their queues are served."""
    eventbus.queue("email", workers=5, batch_size=5)
    eventbus.queue("reports", workers=1, batch_size=1)
    eventbus.queue("audit", workers=2)

    # 30, 60 and 90 minutes in earnest
    waits = Sequence([timedelta(milliseconds=30), timedelta(milliseconds=60), timedelta(milliseconds=90)])

    async def make_sender() -> SendEmailHandler:
        """Made once per worker: a place for connections that handlers share."""
        return SendEmailHandler(Mailer((await get_smtp()).host))

    eventbus.handler(
        SendEmail, queue="email", max_retries=3, timeout=timedelta(minutes=5), backoff=waits, factory=make_sender
    )(SendEmailHandler)

    @eventbus.handler(Report, group="send_email.make_report", queue="reports")
    async def make_report(event: Report, smtp: Annotated[Smtp, Depends(get_smtp)]) -> None:
        print(f"made the report {event.name!r} for {smtp.host}")

    @eventbus.handler("#", group="send_email.audit", queue="audit")
    def audit(payload: dict[str, str]) -> None:
        """A sync function runs in a thread."""


class SendEmailHandler:
    def __init__(self, mailer: Mailer) -> None:
        self._mailer = mailer

    async def handle(self, event: SendEmail, attempt: Attempt) -> None:
        await self._mailer.send(event.to, event.subject, attempt)


async def main(directory: str) -> None:
    eventbus = EventBus(f"sqlite+aiosqlite:///{directory}/eventbus.db")
    wire(eventbus)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, ended.set)
    async with eventbus:
        await eventbus.workers.start()
        await eventbus.publish(SendEmail(to="first@example.org", subject="Welcome"))
        await eventbus.publish(Report(name="sales"))
        async with AsyncSession(eventbus.engine) as session, session.begin():
            # rows of your own go here: the e-mail is sent if and only if they are committed
            await eventbus.publish_txn(session, SendEmail(to="second@example.org", subject="Your order"))
        print("waiting for Ctrl-C")
        await ended.wait()
        print("ending")
        eventbus.workers.shutdown()
        is_done = await eventbus.workers.join(timeout=60)
        print("everything was done" if is_done else "the rest is done next time")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(directory))
