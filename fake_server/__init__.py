"""A fake of both GPU clouds, MatrixDC and AutoDL, whose machines really answer over SSH. It rents nothing."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fake_server.cloud import FakeCloud

__all__ = ["FakeCloud"]


def __getattr__(name: str) -> Any:
    """Load the web server when FakeCloud is first asked for; who only imports the package need not wait for it."""
    if name == "FakeCloud":
        from fake_server.cloud import FakeCloud  # noqa: PLC0415

        return FakeCloud
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
