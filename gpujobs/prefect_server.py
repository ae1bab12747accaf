"""The Prefect server of our own controller: Prefect's, but for how it begins to write to SQLite.

Prefect begins most transactions as readers, which SQLite refuses to turn into writers once another has written in
between: the call is answered 503, and made again. Creating a flow run, which reads for long before it writes, fares so
for minutes while many runs are at work. Here every transaction that may write waits for its turn first.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prefect.server.api.server import create_app as prefect_app
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import MODELS_DEPENDENCIES
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

from gpujobs.process import collect_seldom

TURN_S = 60.0  # as long as Prefect has SQLite wait


class OneWriter(AioSqliteConfiguration):
    """SQLite, whose writers wait for each other: in a queue, and without a connection each.

    Left to SQLite they would sleep and try, in no order, and the sixth connection is opened anew for each call.
    """

    def __init__(self, connection_url: str) -> None:
        """Serve the database at `connection_url`, from one process."""
        super().__init__(connection_url=connection_url)
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def begin_transaction(
        self,
        session: AsyncSession,
        with_for_update: bool = False,  # noqa: ARG002 - it always is
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        """Begin as a writer."""
        async with self._in_turn(), super().begin_transaction(session, with_for_update=True) as transaction:
            yield transaction

    @asynccontextmanager
    async def _in_turn(self) -> AsyncGenerator[None, None]:
        """Wait for our turn; after TURN_S, SQLite's own lock is left to say what it says."""
        try:
            async with asyncio.timeout(TURN_S):
                await self._turn.acquire()
        except TimeoutError:
            yield
            return
        try:
            yield
        finally:
            self._turn.release()


def create_app() -> FastAPI:
    """Make the server; uvicorn's factory."""
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if url.startswith("sqlite"):
        MODELS_DEPENDENCIES["database_config"] = OneWriter(connection_url=url)
    app = prefect_app()
    collect_seldom()
    return app
