"""The ledger's tables, as SQLAlchemy knows them. A change here needs a migration in `migrations/versions`."""

from datetime import UTC, datetime

from sqlalchemy import (
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)


class UtcTime(TypeDecorator[datetime]):
    """An aware datetime, kept in UTC; SQLite keeps no zone, so it is laid on again when read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a naive time: nobody can tell later which zone was meant."""
        del dialect
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value.isoformat()} has no time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give it back aware."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

runs = Table(
    "runs",
    metadata,
    Column("id", String(16), nullable=False),
    Column("name", String(40), nullable=False),
    Column("owner", String(16), nullable=False),
    Column("recipe_json", Text, nullable=False),
    Column("state", String(32), nullable=False),
    Column("phase", String(32), nullable=False),
    Column("detail", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("started_at", UtcTime),
    Column("ended_at", UtcTime),
    Column("exit_code", Integer),
    Column("error", Text, nullable=False),
    Column("cost_cny", Float),
    Column("estimate_cny", Float),
    Column("driver", String(255), nullable=False),
    Column("lease_until", UtcTime),
    Column("fence", Integer, nullable=False, server_default="0"),
    Column("cancel_requested_at", UtcTime),
    Column("flow_run_id", String(64)),
    Column("workdir", Text, nullable=False),
    Column("kind", String(16), nullable=False, server_default="job"),
    PrimaryKeyConstraint("id"),
    Index(None, "created_at"),
    Index(None, "name", "created_at"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("run_id", String(16), ForeignKey("runs.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("name", String(64), nullable=False),
    Column("backend", String(64), nullable=False),
    Column("region", String(255), nullable=False),
    Column("offer_json", Text, nullable=False),
    Column("state", String(32), nullable=False),
    Column("phase", String(32), nullable=False),
    Column("started_at", UtcTime),
    Column("ended_at", UtcTime),
    Column("error", Text, nullable=False),
    Column("exit_code", Integer),
    Column("outcome", String(64), nullable=False),
    Column("log_sha256", String(64), nullable=False),
    Column("rented_from", UtcTime),
    Column("rented_until", UtcTime),
    PrimaryKeyConstraint("run_id", "number"),
    UniqueConstraint("name"),
)

machines = Table(
    "machines",
    metadata,
    Column("name", String(64), nullable=False),
    Column("run_id", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("backend", String(64), nullable=False),
    Column("id", String(255)),
    Column("unit", String(255), nullable=False),
    Column("region", String(255), nullable=False),
    Column("status", String(32), nullable=False),
    Column("host_key", Text, nullable=False),
    Column("price_cny_per_h", Float),
    Column("intent_at", UtcTime, nullable=False),
    Column("created_at", UtcTime),
    Column("running_at", UtcTime),
    Column("released_at", UtcTime),
    Column("gone_at", UtcTime),
    Column("settled", Boolean, nullable=False),
    PrimaryKeyConstraint("name"),
    ForeignKeyConstraint(["run_id", "attempt"], ["attempts.run_id", "attempts.number"]),
    Index(None, "run_id"),
    Index(None, "gone_at"),
)

events = Table(
    "events",
    metadata,
    Column("number", Integer, nullable=False),
    Column("machine", String(64), ForeignKey("machines.name"), nullable=False),
    Column("key", Text, nullable=False),
    Column("status", String(32), nullable=False),
    Column("raw", Text, nullable=False),
    Column("at", UtcTime),
    Column("seen_at", UtcTime, nullable=False),
    PrimaryKeyConstraint("number"),
    UniqueConstraint("machine", "key"),
)

bills = Table(
    "bills",
    metadata,
    Column("run_id", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("seconds", Float),
    Column("price_cny_per_h", Float),
    Column("cost_cny", Float),
    Column("from_at", UtcTime),
    Column("until_at", UtcTime),
    PrimaryKeyConstraint("run_id", "attempt"),
    ForeignKeyConstraint(["run_id", "attempt"], ["attempts.run_id", "attempts.number"]),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("name", String(64), nullable=False),
    Column("tag", String(64), nullable=False),
    Column("backend", String(64), nullable=False),
    Column("region", String(255), nullable=False),
    Column("image", Text, nullable=False),
    Column("run_id", String(16), ForeignKey("runs.id")),
    Column("made_at", UtcTime, nullable=False),
    Column("state", String(32), nullable=False),
    PrimaryKeyConstraint("name", "tag", "backend", "region"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("run_id", String(16), ForeignKey("runs.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("parameters", Text, nullable=False),
    Column("state", String(32), nullable=False),
    Column("tries", Integer, nullable=False),
    Column("machine", String(64), nullable=False),
    Column("exit_code", Integer),
    Column("error", Text, nullable=False),
    Column("metrics", Text, nullable=False),
    Column("began_at", UtcTime),
    Column("ended_at", UtcTime),
    PrimaryKeyConstraint("run_id", "number"),
)
