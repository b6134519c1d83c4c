"""What uvicorn's log has to say about clients: a fault of theirs is no error of the server."""

from __future__ import annotations

import logging
import re


class ClientFaultFilter(logging.Filter):
    """Report a WebSocket frame that is not UTF-8 as information, in one line: uvicorn logs it as an error with a
    traceback, so that any client could fill the log. Leave out that a handshake was not completed: uvicorn logs that
    as an error, too, where it was refused with an answer.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        message = str(record.msg)
        if message.startswith("ASGI callable returned without completing handshake"):
            return False
        if not message.startswith("Invalid UTF-8"):
            return True
        record.exc_info, record.exc_text = None, None
        record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        return logging.getLogger(record.name).isEnabledFor(logging.INFO)


class TicketFilter(logging.Filter):
    """Leave tickets and tokens out of the URLs that uvicorn logs, of requests and of WebSockets."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_SECRET.sub(r"\1…", each) if isinstance(each, str) else each for each in record.args)
        return True


_SECRET = re.compile(r"([?&](?:ticket|token|access_token)=)[^&\s\"]*", re.IGNORECASE)

_filter = ClientFaultFilter()
_ticket_filter = TicketFilter()


def quiet() -> None:
    """Install the filters, once. For a process whose log is the bus's own to arrange."""
    logging.getLogger("uvicorn.error").addFilter(_filter)
    for name in ("uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).addFilter(_ticket_filter)
