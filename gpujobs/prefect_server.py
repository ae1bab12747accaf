"""The Prefect server of our own controller: Prefect's, but for how it begins to write to SQLite.

Prefect begins most transactions as readers, which SQLite refuses to turn into writers once another has written in
between: the call is answered 503, and made again. Creating a flow run, which reads for long before it writes, fares so
for minutes while many runs are at work. Here every transaction that may write waits for its turn first.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prefect.server.api.server import create_app as prefect_app
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import MODELS_DEPENDENCIES
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

from gpujobs.process import collect_seldom


class OneWriter(AioSqliteConfiguration):
    """SQLite, whose writers wait for each other."""

    @asynccontextmanager
    async def begin_transaction(
        self,
        session: AsyncSession,
        with_for_update: bool = False,  # noqa: ARG002 - it always is
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        """Begin as a writer."""
        async with super().begin_transaction(session, with_for_update=True) as transaction:
            yield transaction


def create_app() -> FastAPI:
    """Make the server; uvicorn's factory."""
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if url.startswith("sqlite"):
        MODELS_DEPENDENCIES["database_config"] = OneWriter(connection_url=url)
    app = prefect_app()
    collect_seldom()
    return app
