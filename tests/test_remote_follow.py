"""The log that is followed is the log that was written, over whatever becomes of the connection."""

import contextlib
import threading
import time

import pytest

from gpujobs.clock import StopToken
from gpujobs.errors import Cancelled, RemoteFailure, Unreachable
from gpujobs.runner import Runner
from gpujobs.shell import Shell, quote_path
from tests.sshd.machines import QUICK, Server
from tests.sshd.proxy import Proxy
from tests.sshd.runs import LINES, NO_STOP, begin, end_of, log_of, spec, until

pytest_plugins = ("tests.sshd.fixtures",)


def test_a_log_followed_over_cut_connections_is_the_log(
    server: Server, runner: Runner, proxy: Proxy, place: str
) -> None:
    begin(runner, LINES, envs={"PAD": "x" * 50})
    came = bytearray()
    cuts = 0
    while True:
        try:
            with server.connect(port=proxy.port, timeouts=QUICK) as shell:
                proxy.cut_after(30_000)
                assert Runner(shell, base=place, name=runner.name).follow(len(came), came.extend, stop=NO_STOP) == len(
                    came
                )
                break
        except Unreachable:
            cuts += 1
    assert cuts >= 3
    assert came == b"".join(b"line %d %s\n" % (i, b"x" * 50) for i in range(3000))
    record = end_of(runner)
    assert (record.code, record.log_size) == (0, len(came))


def test_work_outlives_the_connection_that_started_it(server: Server, place: str, proxy: Proxy) -> None:
    with server.connect(port=proxy.port, timeouts=QUICK) as shell:
        begin(Runner(shell, base=place, name="gj-1"), "sleep 1; echo alive")
        proxy.cut()
    with server.connect() as again:
        assert log_of(Runner(again, base=place, name="gj-1")) == b"alive\n"


def test_a_frozen_follower_does_not_hold_up_the_work(server: Server, runner: Runner, proxy: Proxy, place: str) -> None:
    begin(runner, "until [ -e ../go ]; do sleep 0.05; done; head -c 20000000 /dev/zero; echo x >../done")
    with server.connect(port=proxy.port, timeouts=QUICK) as shell:
        frozen = Runner(shell, base=place, name=runner.name)

        def follow() -> None:
            with contextlib.suppress(Unreachable):
                frozen.follow(0, len, stop=NO_STOP)

        thread = threading.Thread(target=follow)
        thread.start()
        until(lambda: b"tail" in runner._shell.run("cat /proc/[0-9]*/comm").stdout)
        proxy.freeze()
        runner._shell.check(f"touch {quote_path(runner.folder)}/go", what="going on")
        assert end_of(runner).log_size == 20_000_000
        thread.join()


def test_following_from_an_offset_gives_the_rest(runner: Runner) -> None:
    begin(runner, "printf 0123456789")
    assert log_of(runner) == b"0123456789"
    came = bytearray()
    assert runner.follow(7, came.extend, stop=NO_STOP) == 10
    assert came == b"789"
    assert runner.follow(10, came.extend, stop=NO_STOP) == 10
    with pytest.raises(RemoteFailure, match="fewer than the 11"):
        runner.follow(11, came.extend, stop=NO_STOP)


def test_a_line_is_seen_at_once(runner: Runner) -> None:
    begin(runner, "sleep 1; date +%s.%N; sleep 1")
    seen: list[float] = []
    said = bytearray()

    def note(data: bytes) -> None:
        seen.append(time.time())
        said.extend(data)

    runner.follow(0, note, stop=NO_STOP)
    assert seen[0] - float(said) < 0.8


def test_a_stopped_follower_lets_go(runner: Runner) -> None:
    begin(runner, "sleep 60")
    stop = StopToken()
    timer = threading.Timer(0.3, stop.stop, [Cancelled("enough")])
    timer.start()
    with pytest.raises(Cancelled):
        runner.follow(0, lambda _: None, stop=stop)
    timer.join()


def test_marks_are_files_in_the_folder(shell: Shell, runner: Runner) -> None:
    runner.install(spec("true"))
    runner.heartbeat()
    first = shell.run(f"cat {quote_path(runner.folder)}/heartbeat").stdout
    runner.heartbeat()
    runner.mark_pulled()
    runner.mark_pulled()
    assert shell.run(f"cat {quote_path(runner.folder)}/heartbeat").stdout != first
    assert shell.run(f"test -f {quote_path(runner.folder)}/pulled").code == 0
