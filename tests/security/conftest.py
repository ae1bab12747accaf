"""Fixtures that the command line's tests have too."""

from tests.cli.conftest import bare, cli, environment

__all__ = ["bare", "cli", "environment"]
