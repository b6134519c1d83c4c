"""${message}.

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic.operations import Operations
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


# Build every name from `prefix` and pass `schema` on: autogenerate has written those of one database.
def upgrade(op: Operations, prefix: str, schema: str | None) -> None:
    ${upgrades if upgrades else "pass"}


def downgrade(op: Operations, prefix: str, schema: str | None) -> None:
    ${downgrades if downgrades else "pass"}
