"""The team's own limits: how many GPUs of a kind may be rented at a time, as a run sees them."""

from typing import Protocol


class Slots(Protocol):
    """Places under the limits. A run holds those of one machine at a time; nothing here ends a run."""

    def take(self, run_id: str, gpu: str, count: int) -> str:
        """Take `count` places for the GPU `gpu`, in place of what the run holds; give why not, or "" once it has them.

        Never waits for a place. Those that it holds already are not taken again.
        """
        ...

    def hold(self, run_id: str, gpu: str, count: int) -> None:
        """Have the places of a machine that lives already taken as soon as that is possible."""
        ...

    def give_back(self, run_id: str) -> None:
        """Give back what the run holds; nothing is fine."""
        ...


class Unlimited:
    """No limits: what runs without a Prefect server has."""

    def take(self, run_id: str, gpu: str, count: int) -> str:  # noqa: ARG002
        """Say yes."""
        return ""

    def hold(self, run_id: str, gpu: str, count: int) -> None:
        """Do nothing."""

    def give_back(self, run_id: str) -> None:
        """Do nothing."""
