"""A statement as a driver itself takes it: its text, and its values in order. For the few that every event passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Dialect


class DriverText:
    """See the module's docstring. Values go to the driver as they are, with no type of SQLAlchemy in between.

    Args:
        columns: of an insert, the columns whose values are parameters by their names.
    """

    def __init__(self, statement: Any, dialect: Dialect, *, columns: Sequence[str] | None = None) -> None:
        compiled: Any = statement.compile(dialect=dialect, column_keys=columns)
        self.text = str(compiled)
        self._names, self._constants = compiled.positiontup or [], compiled.params

    def values(self, parameters: Mapping[str, Any]) -> list[Any]:
        """Return the values of parameters, in the order of the text."""
        return [parameters[name] if name in parameters else self._constants[name] for name in self._names]

    def fill(self, parameters: Mapping[str, Any]) -> list[Any]:
        """Return the text and the values, as asyncpg takes them."""
        return [self.text, *self.values(parameters)]
