"""Fixtures that the command line's tests have too."""

import pytest

from tests.cli.conftest import bare, cli, environment

__all__ = ["bare", "cli", "environment"]


@pytest.fixture
def forks() -> None:
    """Have each command in a process of its own, whose arguments and environment can be looked at."""
