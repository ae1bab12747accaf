"""What a command prints: text and tables for people, or one JSON value for programs."""

import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gpujobs.progress import TerminalReporter, clean, drop

UNKNOWN = "unknown"


class Output(NamedTuple):
    """Where a command's answer goes; with `json`, standard output carries the JSON value alone."""

    json: bool

    def value(self, value: Mapping[str, Any] | Sequence[Any]) -> None:
        """Print the command's answer, where JSON was asked for."""
        if self.json:
            print(json.dumps(value, ensure_ascii=False, indent=2, default=_plain))  # noqa: T201

    def text(self, text: str = "") -> None:
        """Print a line for people; nothing with --json, whose value says it."""
        if not self.json:
            print(clean(text))  # noqa: T201

    def table(self, head: Sequence[str], rows: Iterable[Sequence[object]], *, none: str) -> None:
        """Print a table for people, or the sentence `none` where it has no rows."""
        if self.json:
            return
        cells = [[clean(str(cell)).replace("\n", " ") for cell in row] for row in rows]
        if not cells:
            self.text(none)
            return
        widths = [max(map(_width, column)) for column in zip(head, *cells, strict=True)]
        for row in [head, *cells]:
            self.text("  ".join(_padded(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def tell(self, text: str) -> None:
        """Say something on the way, on standard error, behind what is printed already."""
        sys.stdout.flush()
        print(clean(text), file=sys.stderr, flush=True)  # noqa: T201

    def reporter(self) -> TerminalReporter:
        """Give the reporter of a run: with --json, the job's output goes to standard error too."""
        return TerminalReporter(out=sys.stderr if self.json else sys.stdout)


def price(cny_per_h: float | None, *, estimate: bool = False) -> str:
    """Write a price; unknown is said, never 0."""
    return UNKNOWN if cny_per_h is None else f"{'~' if estimate else ''}{cny_per_h:.2f}"


def amount(value: float | None) -> str:
    """Write a number of cores or GB; "?" where the provider does not tell it."""
    return "?" if value is None else f"{value:g}"


def money(cny: float | None) -> str:
    """Write an amount; unknown is said, never 0."""
    return UNKNOWN if cny is None else f"{cny:.4f} CNY" if 0 < cny < 0.1 else f"{cny:.2f} CNY"  # noqa: PLR2004


def steady_streams() -> None:
    """Let no character that a terminal cannot show end a command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def close_quietly(act: Callable[[], int]) -> int:
    """Do `act` and flush; where the reader of our output has gone away, end without a word."""
    code = 0
    try:
        code = act()
        sys.stdout.flush()
    except BrokenPipeError:
        drop(sys.stdout)
    return code


def _plain(value: object) -> Any:
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    return str(value)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))
