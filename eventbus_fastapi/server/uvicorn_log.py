"""What uvicorn's log has to say about clients: a fault of theirs is no error of the server."""

from __future__ import annotations

import logging


class InvalidTextFilter(logging.Filter):
    """Report a WebSocket frame that is not UTF-8 as information, in one line: uvicorn logs it as an error with a
    traceback, so that any client could fill the log.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith("Invalid UTF-8"):
            return True
        record.exc_info, record.exc_text = None, None
        record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        return logging.getLogger(record.name).isEnabledFor(logging.INFO)


_filter = InvalidTextFilter()


def quiet() -> None:
    """Install the filter, once. For a process whose log is the bus's own to arrange."""
    logging.getLogger("uvicorn.error").addFilter(_filter)
