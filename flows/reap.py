"""The flow that releases machines which no living run owns; let it run every few minutes."""

import asyncio

from gpujobs.reap_flow import reap

__all__ = ["reap"]

if __name__ == "__main__":
    asyncio.run(reap())
