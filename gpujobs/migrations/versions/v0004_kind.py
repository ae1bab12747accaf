"""What a run is: one job, a recipe's tasks, or a program's fleet."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_FLEETS = "UPDATE runs SET kind = 'fleet' WHERE recipe_json LIKE '%# the machines of a fleet of gpujobs%'"
_TASKS = """UPDATE runs SET kind = 'tasks' WHERE recipe_json LIKE '%"matrix":{"%' OR recipe_json LIKE '%"tasks":[{%'"""


def upgrade() -> None:
    """Add it; of the runs that are there, a fleet's are known by the first line of what ran, as they were till now."""
    op.add_column("runs", sa.Column("kind", sa.String(length=16), nullable=False, server_default="job"))
    op.execute(_FLEETS)
    op.execute(_TASKS)
