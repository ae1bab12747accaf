"""The ledger's schema migrations, run by Alembic when a ledger is opened."""
