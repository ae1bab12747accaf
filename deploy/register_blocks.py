"""Registers Prefect's block types, and ours, in a new database: servers that did so as they start would collide."""

import asyncio

from prefect.server.database import provide_database_interface
from prefect.server.models.block_registration import run_block_auto_registration


async def register() -> None:
    """Register them; again is fine."""
    async with await provide_database_interface().session() as session:
        await run_block_auto_registration(session=session)


if __name__ == "__main__":
    asyncio.run(register())
