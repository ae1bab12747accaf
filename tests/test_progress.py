"""What a terminal, and what a pipe, shows of a run; and that nothing which a job writes can steer a terminal."""

import io
import itertools
import os
import pty
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpujobs.progress import Cleaner, TerminalReporter, clean, size_text, time_text

ESC = "\x1b"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (f"{ESC}[31mred{ESC}[0m", "red"),
        (f"{ESC}[2J{ESC}[H{ESC}[?1049hscreen", "screen"),
        (f"{ESC}]0;title\x07text", "text"),
        (f"{ESC}]52;c;Y2xpcA=={ESC}\\text", "text"),  # the clipboard
        (f"{ESC}P+q{ESC}\\text", "text"),
        (f"{ESC}(0box{ESC}c", "box"),
        ("\x9b31mred\x9d0;t\x9ctext", "redtext"),
        ("bell\x07 back\b null\0 delete\x7f", "bell back null delete"),
        ("10%\r20%\n\tx", "10%\r20%\n\tx"),
        ("abc\u202edef\u2066", "abcdef"),
        ("显卡 — naïve", "显卡 — naïve"),
    ],
)
def test_escapes_and_controls_are_stripped(written: str, shown: str) -> None:
    assert clean(written) == shown


@given(data=st.binary(max_size=60), cuts=st.lists(st.integers(0, 60), max_size=6))
def test_no_control_gets_through_however_the_bytes_are_cut(data: bytes, cuts: list[int]) -> None:
    data = data.replace(b"e", b"\x1b").replace(b"f", b"\x1b[")
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    cleaner = Cleaner()
    shown = "".join(cleaner.feed(data[a:b]) for a, b in itertools.pairwise(places))
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", shown)


def test_an_escape_cut_in_two_is_stripped_and_a_character_cut_in_two_is_whole() -> None:
    cleaner = Cleaner()
    pieces = [b"a\x1b", b"[3", b"1mb", "卡".encode()[:1], "卡".encode()[1:], b"\x1b]0;ti", b"tle\x07c"]
    assert "".join(cleaner.feed(piece) for piece in pieces) == "ab卡c"


def test_an_escape_that_never_ends_does_not_swallow_the_rest_for_ever() -> None:
    cleaner = Cleaner()
    shown = cleaner.feed(b"\x1b]0;" + b"x" * 10_000) + cleaner.feed(b"visible\n")
    assert shown.endswith("visible\n")
    assert ESC not in shown


class Screen:
    """A terminal: what is written to `file` can be read."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.file = os.fdopen(slave, "w", encoding="utf-8")

    def read(self) -> str:
        """Give what was written so far."""
        self.file.flush()
        os.set_blocking(self._master, False)
        data = b""
        try:
            while piece := os.read(self._master, 65536):
                data += piece
        except BlockingIOError:
            return data.decode()
        return data.decode()

    def close(self) -> None:
        """Hang up."""
        self.file.close()
        os.close(self._master)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    one = Screen()
    yield one
    one.close()


def piped() -> tuple[io.BytesIO, io.TextIOWrapper, io.StringIO]:
    raw = io.BytesIO()
    return raw, io.TextIOWrapper(raw, encoding="utf-8"), io.StringIO()


def test_piped_output_is_what_the_job_wrote() -> None:
    raw, out, err = piped()
    reporter = TerminalReporter(out=out, err=err)
    reporter.output(b"\x1b[31mred\xff\0")
    assert (raw.getvalue(), err.getvalue()) == (b"\x1b[31mred\xff\0", "")


def test_phases_and_notes_are_plain_lines_and_are_not_repeated() -> None:
    _, out, err = piped()
    reporter = TerminalReporter(out=out, err=err)
    reporter.phase("boot", "m\x1b[2J")
    reporter.phase("boot", "m\x1b[2J")
    reporter.note("slow")
    assert re.fullmatch(r"\[ +0\.\ds\] boot: m\n\[ +0\.\ds\] note: slow\n", err.getvalue())


def test_without_a_terminal_progress_is_one_line_at_its_end() -> None:
    _, out, err = piped()
    reporter = TerminalReporter(out=out, err=err)
    for done in range(0, 3_000_001, 1_000_000):
        reporter.progress("uploading workdir", done, 3_000_000)
    reporter.progress("waiting for SSH", 2, 900)
    assert re.fullmatch(r"\[.*\] uploading workdir: 3\.0 MB of 3\.0 MB in 0\.\ds\n", err.getvalue())


def test_on_a_terminal_progress_is_a_bar_that_makes_room_for_output(screen: Screen) -> None:
    reporter = TerminalReporter(out=screen.file, err=screen.file)
    reporter.progress("uploading [workdir]", 1_000_000, 2_000_000)
    assert re.search(r"uploading \[workdir\].*1\.0/2\.0 MB", screen.read())
    reporter.output(b"\x1b[31mplain\n")
    shown = screen.read()
    assert "\x1b[2K" in shown  # the bar is wiped
    assert "plain" in shown
    assert "\x1b[31mplain" not in shown
    reporter.progress("uploading [workdir]", 2_000_000, 2_000_000)
    assert re.search(r"2\.0/2\.0 MB", screen.read())


def test_a_line_that_has_no_end_yet_is_ended_before_ours(screen: Screen) -> None:
    reporter = TerminalReporter(out=screen.file, err=screen.file, bars=False)
    reporter.output(b"no end")
    reporter.phase("pull", "m")
    assert re.fullmatch(r"no end\r\n\[.*\] pull: m\r\n", screen.read())


def test_a_reader_that_has_gone_never_raises_into_the_run() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as out, io.StringIO() as err:
        os.close(reading)
        reporter = TerminalReporter(out=out, err=err)
        reporter.output(b"x" * 100)
        assert reporter.cut
        reporter.output(b"y")
        reporter.phase("pull", "m")
        assert "pull: m" in err.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m00s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (86399, "23h59m"),
        (86400, "1d00h"),
        (1e6, "11d13h"),
    ],
)
def test_times_are_told_as_people_do(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345_678, "12.3 MB"), (4e15, "4000.0 TB")]
)
def test_sizes_are_told_as_people_do(size: float, text: str) -> None:
    assert size_text(size) == text
