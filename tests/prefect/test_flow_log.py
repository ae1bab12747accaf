"""What of a run becomes lines of a log, and when."""

import logging

import pytest

from gpujobs import flow_log
from gpujobs.flow_log import RunLog


class Hand:
    """A clock that is moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        """Say what time it is, in seconds."""
        return self.now


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "run")


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def log(hand: Hand) -> RunLog:
    return RunLog(logging.getLogger("run"), where="/home/x/output.log", now=hand)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_output_is_gathered_for_a_second(log: RunLog, hand: Hand, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(5):
        log.output(b"line %d\n" % number)
    assert said(caplog) == []
    hand.now = 1.0
    log.flush()
    assert said(caplog) == ["line 0\nline 1\nline 2\nline 3\nline 4"]


def test_pieces_end_at_lines_and_lose_nothing(log: RunLog, caplog: pytest.LogCaptureFixture) -> None:
    text = b"".join(b"%07d\n" % number for number in range(40_000))
    log.output(text)
    log.flush(force=True)
    assert all(len(message) < flow_log.PIECE_BYTES for message in said(caplog))
    assert "\n".join(said(caplog)).encode() + b"\n" == text


def test_half_a_line_waits_for_its_other_half_unless_it_is_time(
    log: RunLog, hand: Hand, caplog: pytest.LogCaptureFixture
) -> None:
    log.output(b"whole\nhal")
    hand.now = 1.0
    log.flush()
    assert said(caplog) == ["whole"]
    log.output(b"f\n")
    log.flush(force=True)
    assert said(caplog) == ["whole", "half"]


def test_terminal_escapes_and_broken_characters_are_not_passed_on(
    log: RunLog, caplog: pytest.LogCaptureFixture
) -> None:
    log.output(b"\x1b[31mred\x1b[0m \x1b]0;title\x07\xff 10%\r20%\n")
    log.flush(force=True)
    assert said(caplog) == ["red � 10%20%"]


def test_phase_comes_behind_the_output_before_it(log: RunLog, caplog: pytest.LogCaptureFixture) -> None:
    log.output(b"working")
    log.phase("pull", "m")
    log.note("careful")
    assert said(caplog) == ["working", "pull: m", "careful"]


def test_endless_output_is_cut_with_the_place_of_the_rest(log: RunLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(flow_log.OUTPUT_BYTES // 2**20 + 2):
        log.output(b"x" * 63 * 2**14 + b"\n")
    log.flush(force=True)
    assert sum(len(message) for message in said(caplog)) < flow_log.OUTPUT_BYTES + 2 * flow_log.PIECE_BYTES
    assert said(caplog)[-1] == "the job wrote more than this log takes; all of its output is in /home/x/output.log"
    assert sum("more than this log takes" in message for message in said(caplog)) == 1


def test_progress_is_told_every_half_minute_and_at_the_end(
    log: RunLog, hand: Hand, caplog: pytest.LogCaptureFixture
) -> None:
    for second in range(70):
        hand.now = float(second)
        log.progress("uploading x", second, 100)
    log.progress("uploading x", 100, 100)
    assert said(caplog) == [f"uploading x: {done} B of 100 B" for done in (30, 60, 100)]


def test_output_says_how_far_it_goes_and_is_gone_on_with_from_there(
    log: RunLog, caplog: pytest.LogCaptureFixture
) -> None:
    log.phase("run", "gj-tester-aaaa111111-2")
    log.output(b"one\n")
    log.flush(force=True)
    assert flow_log.told_of(record.name for record in caplog.records) == (2, 4)
    another = RunLog(logging.getLogger("run"), where="")
    another.catch_up(2, 4, b"two\n")
    another.phase("run", "gj-tester-aaaa111111-2")
    another.output(b"three\n")
    another.flush(force=True)
    assert flow_log.told_of(record.name for record in caplog.records) == (2, 14)
    another.phase("boot", "gj-tester-aaaa111111-3")
    another.output(b"new\n")
    another.flush(force=True)
    assert flow_log.told_of(record.name for record in caplog.records) == (3, 4)
