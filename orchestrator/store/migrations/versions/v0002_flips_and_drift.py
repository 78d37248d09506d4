"""Scores count flips against the last release; rounds know how far each group drifted.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """What was not measured yet is 0 of 0 compared, and no group."""
    with op.batch_alter_table("scores", schema=None) as batch_op:
        for name in ("num_lost", "num_gained", "num_compared"):
            batch_op.add_column(
                sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")
            )
    with op.batch_alter_table("rounds", schema=None) as batch_op:
        batch_op.add_column(sa.Column("drift", sa.JSON(), nullable=False, server_default="{}"))
