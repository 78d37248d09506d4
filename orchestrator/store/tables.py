"""The tables as SQLAlchemy sees them; Alembic's migrations make them (a test compares)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from orchestrator.store.base import RunStatus

_KINDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_MARK = "$float"
_UNHOLDABLE = re.compile("[\x00\ud800-\udfff]")


class UtcDateTime(TypeDecorator[datetime]):
    """Aware times, kept in UTC; SQLite drops the zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"naive time {value}; give it a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class AnyText(TypeDecorator[str]):
    """Text from anywhere: what not every database can hold (NUL, half a surrogate pair) is "�"."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else _UNHOLDABLE.sub("\N{REPLACEMENT CHARACTER}", value)


class StrictJson(TypeDecorator[Any]):
    """JSON in which NaN and infinities are kept by name: ``{"$float": "nan"}``."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return _marked(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return _unmarked(value)


class AnyFloat(TypeDecorator[float]):
    """A float column that keeps NaN, which SQLite would turn into NULL, and infinities."""

    impl = String(32)
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> str | None:
        return None if value is None else repr(float(value))

    def process_result_value(self, value: str | None, dialect: Dialect) -> float | None:
        return None if value is None else float(value)


def parsed(texts: Sequence[str]) -> list[Any]:
    """The values of a ``StrictJson`` column that was read as text; faster than one by one."""
    text = ",".join(texts)
    values: list[Any] = json.loads(f"[{text}]")
    return [_unmarked(value) for value in values] if _MARK in text else values


def _marked(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_MARK: repr(value)}
    if isinstance(value, Mapping):
        return {str(key): _marked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(item) for item in value]
    return value


def _unmarked(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_MARK}:
            return _KINDS[value[_MARK]]
        # Most are flat and of numbers; a call for each would cost more than reading them.
        return {k: _unmarked(v) if isinstance(v, (dict, list)) else v for k, v in value.items()}
    if isinstance(value, list):
        return [_unmarked(item) if isinstance(item, (dict, list)) else item for item in value]
    return value


class Table(DeclarativeBase):
    """Common to all: constraint names that are the same on every database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {
        datetime: UtcDateTime,
        Mapping[str, Any]: StrictJson,
        list[str]: StrictJson,
    }


class RunRow(Table):
    """A run.

    ``checkpoint`` is its newest step's; ``acc`` and ``forgetting`` are those of ``progress``, where
    they are finite, to sort by.
    """

    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint(
            f"status IN ({', '.join(repr(status.value) for status in RunStatus)})", name="status"
        ),
        Index(None, "created_at", "run_id"),
        Index(None, "status", "created_at", "run_id"),
        Index(None, "acc", "run_id"),
        Index(None, "forgetting", "run_id"),
    )

    run_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(AnyText)
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(AnyText)
    config: Mapped[Mapping[str, Any]]
    config_digest: Mapped[str] = mapped_column(String(64))
    code_version: Mapped[str] = mapped_column(String(64))
    environment: Mapped[Mapping[str, Any]]
    task_names: Mapped[list[str]]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    progress: Mapped[Mapping[str, Any]]
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[datetime | None]
    adapter_path: Mapped[str | None] = mapped_column(AnyText)
    checkpoint: Mapped[str | None] = mapped_column(String(64))
    acc: Mapped[float | None] = mapped_column(Double)
    forgetting: Mapped[float | None] = mapped_column(Double)


class TagRow(Table):
    """A word that people gave a run."""

    __tablename__ = "run_tags"
    __table_args__ = (Index(None, "tag"),)

    run_id: Mapped[str] = mapped_column(
        ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True
    )
    tag: Mapped[str] = mapped_column(String(80), primary_key=True)


class EventRow(Table):
    """Something that happened to a run."""

    __tablename__ = "run_events"
    __table_args__ = (Index(None, "run_id", "event_id"),)

    event_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id", ondelete="CASCADE"))
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(40))
    message: Mapped[str] = mapped_column(AnyText)
    data: Mapped[Mapping[str, Any]]


class RoundRow(Table):
    """A committed step; ``totals`` are those ``totals.RoundTotals`` that have no column.

    ``score_table`` has the scores of the accuracy matrix once more, by column (``scores.packed``).
    """

    __tablename__ = "rounds"
    __table_args__ = (UniqueConstraint("run_id", "step_index"),)

    round_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id", ondelete="CASCADE"))
    step_index: Mapped[int] = mapped_column(Integer)
    task_index: Mapped[int] = mapped_column(Integer)
    round_index: Mapped[int] = mapped_column(Integer)
    kind: Mapped[str] = mapped_column(String(16))
    committed_at: Mapped[datetime]
    checkpoint: Mapped[str] = mapped_column(String(64))
    seconds: Mapped[Mapping[str, Any]]
    metrics: Mapped[Mapping[str, Any]]
    truncation: Mapped[Mapping[str, Any]]
    drift: Mapped[Mapping[str, Any]] = mapped_column(StrictJson, server_default="{}")
    clients_ok: Mapped[int] = mapped_column(Integer, server_default="0")
    clients_failed: Mapped[int] = mapped_column(Integer, server_default="0")
    bytes_up: Mapped[int] = mapped_column(BigInteger, server_default="0")
    bytes_down: Mapped[int] = mapped_column(BigInteger, server_default="0")
    truncation_max: Mapped[float | None] = mapped_column(Double)
    totals: Mapped[Mapping[str, Any]] = mapped_column(StrictJson, server_default="{}")
    score_table: Mapped[Mapping[str, Any]] = mapped_column(StrictJson, server_default="{}")


class ClientRow(Table):
    """A client over a run: ``totals.ClientTotals``."""

    __tablename__ = "run_clients"
    __table_args__ = (Index(None, "client_id", "run_id"),)

    run_id: Mapped[str] = mapped_column(
        ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True
    )
    client_id: Mapped[str] = mapped_column(String(80), primary_key=True)
    kind: Mapped[str | None] = mapped_column(String(8))
    asked: Mapped[int] = mapped_column(Integer)
    rounds: Mapped[int] = mapped_column(Integer)
    num_examples: Mapped[int] = mapped_column(BigInteger)
    bytes_up: Mapped[int] = mapped_column(BigInteger)
    bytes_down: Mapped[int] = mapped_column(BigInteger)
    failed: Mapped[int] = mapped_column(Integer)
    peak_memory_bytes: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[Mapping[str, Any]]
    failures: Mapped[Mapping[str, Any]]
    groups: Mapped[Mapping[str, Any]]
    last_step: Mapped[int] = mapped_column(Integer)
    last_ranks: Mapped[Mapping[str, Any]]
    last_metrics: Mapped[Mapping[str, Any]]
    last_peak_memory_bytes: Mapped[int] = mapped_column(BigInteger)


class ReplyRow(Table):
    """One client's part in a step."""

    __tablename__ = "replies"
    __table_args__ = (UniqueConstraint("assignment_id"), Index(None, "round_id", "client_id"))

    reply_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.round_id", ondelete="CASCADE"))
    assignment_id: Mapped[str] = mapped_column(String(160))
    client_id: Mapped[str] = mapped_column(String(80))
    status: Mapped[str] = mapped_column(String(16))
    failure_reason: Mapped[str | None] = mapped_column(String(40))
    failure_detail: Mapped[str | None] = mapped_column(AnyText)
    num_examples: Mapped[int] = mapped_column(BigInteger)
    ranks: Mapped[Mapping[str, Any]]
    bytes_down: Mapped[int] = mapped_column(BigInteger)
    bytes_up: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[Mapping[str, Any]]
    metrics: Mapped[Mapping[str, Any]]
    peak_memory_bytes: Mapped[int] = mapped_column(BigInteger)
    client_kind: Mapped[str | None] = mapped_column(String(8))


class ScoreRow(Table):
    """One client's sums on one task."""

    __tablename__ = "scores"
    __table_args__ = (Index(None, "round_id"),)

    score_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.round_id", ondelete="CASCADE"))
    client_id: Mapped[str] = mapped_column(String(80))
    after_task: Mapped[int] = mapped_column(Integer)
    task_index: Mapped[int] = mapped_column(Integer)
    num_examples: Mapped[int] = mapped_column(BigInteger)
    num_correct: Mapped[int] = mapped_column(BigInteger)
    loss_sum: Mapped[float] = mapped_column(AnyFloat)
    mid_task: Mapped[bool] = mapped_column(Boolean)
    num_lost: Mapped[int] = mapped_column(BigInteger, server_default="0")
    num_gained: Mapped[int] = mapped_column(BigInteger, server_default="0")
    num_compared: Mapped[int] = mapped_column(BigInteger, server_default="0")
