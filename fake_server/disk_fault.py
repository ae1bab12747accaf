"""A disk that a fault rule fills."""

from collections.abc import Awaitable, Callable

from fake_server.follower import Follower
from fake_server.trouble import Trouble


class DiskFault:
    """Tells a machine when a rule leaves no room on its disks, and when there is room again. On the loop's thread."""

    def __init__(self, trouble: Trouble | None, *, tell: Callable[..., Awaitable[None]]) -> None:
        self._trouble, self._tell = trouble, tell
        self._full = False
        self._follower = Follower(trouble, self._mind)

    async def open(self) -> None:
        """Look for the first time, and follow the rules from here on."""
        await self._follower.open()

    def close(self) -> None:
        """Follow no more. Idempotent."""
        self._follower.close()

    async def _mind(self) -> None:
        strike = None if self._trouble is None else self._trouble.of_machine("disk_full")
        if strike is not None:
            self._follower.again_after(strike)
        if self._full != (strike is not None):
            self._full = strike is not None
            await self._tell("fault", full=self._full)
