"""Count the claims on a run, so that a stale one is known."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the count."""
    op.add_column("runs", sa.Column("fence", sa.Integer(), nullable=False, server_default="0"))
