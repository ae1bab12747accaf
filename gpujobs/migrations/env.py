"""Alembic's entry: run the migrations on the connection that `ledger_engine` hands over, in its transaction."""

from alembic import context

from gpujobs.ledger_tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
context.run_migrations()
