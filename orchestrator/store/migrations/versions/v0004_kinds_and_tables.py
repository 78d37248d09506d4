"""Replies and clients have a kind; steps have their largest truncation and their scores packed.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from orchestrator.store.migrations.more_sums import fill

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Nobody knows the kinds of clients that have answered; the rest is made of what is there."""
    op.add_column("replies", sa.Column("client_kind", sa.String(length=8), nullable=True))
    op.add_column("run_clients", sa.Column("kind", sa.String(length=8), nullable=True))
    op.add_column("rounds", sa.Column("truncation_max", sa.Double(), nullable=True))
    op.add_column(
        "rounds", sa.Column("score_table", sa.JSON(), nullable=False, server_default="{}")
    )
    fill(op.get_bind())
