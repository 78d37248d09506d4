"""Steps, clients and runs have their sums beside them; runs have tags; queries have indices.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from orchestrator.store.migrations.first_sums import fill

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """The sums of what is there are made from its replies, run by run."""
    _columns()
    _tables()
    _indices()
    fill(op.get_bind())


def _columns() -> None:
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("checkpoint", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("acc", sa.Double(), nullable=True))
        batch_op.add_column(sa.Column("forgetting", sa.Double(), nullable=True))
    with op.batch_alter_table("rounds", schema=None) as batch_op:
        for name in ("clients_ok", "clients_failed"):
            batch_op.add_column(sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
        for name in ("bytes_up", "bytes_down"):
            batch_op.add_column(
                sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")
            )
        batch_op.add_column(sa.Column("totals", sa.JSON(), nullable=False, server_default="{}"))


def _tables() -> None:
    op.create_table(
        "run_tags",
        sa.Column("run_id", sa.String(length=40), nullable=False),
        sa.Column("tag", sa.String(length=80), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.run_id"], name=op.f("fk_run_tags_run_id_runs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "tag", name=op.f("pk_run_tags")),
    )
    small = ("asked", "rounds", "failed", "last_step")
    integers = {
        name: sa.Integer() if name in small else sa.BigInteger()
        for name in (
            "asked", "rounds", "num_examples", "bytes_up", "bytes_down", "failed",
            "peak_memory_bytes", "last_step", "last_peak_memory_bytes",
        )
    }  # fmt: skip
    documents = ("seconds", "failures", "groups", "last_ranks", "last_metrics")
    op.create_table(
        "run_clients",
        sa.Column("run_id", sa.String(length=40), nullable=False),
        sa.Column("client_id", sa.String(length=80), nullable=False),
        *(sa.Column(name, kind, nullable=False) for name, kind in integers.items()),
        *(sa.Column(name, sa.JSON(), nullable=False) for name in documents),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.run_id"], name=op.f("fk_run_clients_run_id_runs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "client_id", name=op.f("pk_run_clients")),
    )


def _indices() -> None:
    replaced = {
        "runs": ["ix_runs_created_at"],
        "replies": ["ix_replies_round_id"],
        "run_events": ["ix_run_events_run_id"],
    }
    for table, names in replaced.items():
        for name in names:
            op.drop_index(op.f(name), table_name=table)
    for table, *columns in (
        ("runs", "created_at", "run_id"),
        ("runs", "status", "created_at", "run_id"),
        ("runs", "acc", "run_id"),
        ("runs", "forgetting", "run_id"),
        ("run_tags", "tag"),
        ("run_clients", "client_id", "run_id"),
        ("replies", "round_id", "client_id"),
        ("run_events", "run_id", "event_id"),
    ):
        op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, columns, unique=False)
