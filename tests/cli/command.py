"""Real processes: the command as a user runs it, piped or on a terminal of its own."""

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

from tests.cli.forks import Forks

Environment = dict[str, str]
_TIMEOUT_S = 90.0


class Cli:
    """Runs `python -m gpujobs` in a folder and with an environment of its own, or a fork that is spared its imports."""

    def __init__(self, folder: Path, env: Environment, forks: Forks | None = None) -> None:
        self.folder, self.env, self._forks = folder, env, forks
        self._started: list[subprocess.Popen[str]] = []
        self.home = Path(env["GPUJOBS_HOME"])

    def __call__(self, *args: str, **more: Any) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end; with other options than these in a process of its own."""
        if self._forks is not None and more.keys() <= {"env", "timeout"}:
            env, timeout_s = more.get("env", self.env), more.get("timeout", _TIMEOUT_S)
            return self._forks.run(args, folder=self.folder, env=env, timeout_s=timeout_s)
        usual = {"cwd": self.folder, "env": self.env, "capture_output": True, "text": True, "timeout": _TIMEOUT_S}
        return subprocess.run([sys.executable, "-m", "gpujobs", *args], check=False, **(usual | more))

    def start(self, *args: str, **more: Any) -> "subprocess.Popen[str]":
        """Start a command whose standard output and error are read while it runs."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        process = subprocess.Popen(
            [sys.executable, "-m", "gpujobs", *args], cwd=self.folder, env=self.env, text=True, **options
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """End what was started and still runs, and close its pipes."""
        for process in self._started:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def recipe(self, text: str, name: str = "recipe.yaml") -> str:
        """Write a recipe; give its path."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return str(path)


class Terminal:
    """A command on a terminal of its own, with keys that are typed and a screen that is read."""

    def __init__(self, cli: Cli, *args: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpujobs", *args],
            cwd=cli.folder,
            env={**cli.env, "TERM": "xterm", "COLUMNS": "150", "LINES": "50"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=_take_terminal,  # noqa: PLW1509 - so that Ctrl-C reaches it as a signal; it only makes one call
            start_new_session=True,
        )
        os.close(slave)
        self.screen = ""

    def type(self, keys: str) -> None:
        """Type keys; chr(3) is Ctrl-C."""
        os.write(self._master, keys.encode())

    def expect(self, pattern: str, timeout_s: float = 40.0) -> str:
        """Read until `pattern` is on the screen; give all that was shown so far."""
        deadline = time.monotonic() + timeout_s
        while not re.search(pattern, self.screen):
            assert self._read(deadline - time.monotonic()), f"no {pattern!r} on the screen:\n{self.screen}"
        return self.screen

    def end(self, timeout_s: float = 60.0) -> int:
        """Read to the end; give the exit code."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline - time.monotonic()):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def close(self) -> None:
        """End it, however it stands."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)

    def _read(self, timeout_s: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, timeout_s))
        try:
            data = os.read(self._master, 65536) if ready else b""
        except OSError:  # Linux: the other end is closed
            data = b""
        self.screen += data.decode(errors="replace")
        return bool(data)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def read_until(process: "subprocess.Popen[str]", pattern: str, *, of: str = "stderr") -> str:
    """Read lines of a running command until one matches; give them."""
    stream = process.stderr if of == "stderr" else process.stdout
    assert stream is not None
    seen = ""
    for line in stream:
        seen += line
        if re.search(pattern, line):
            return seen
    raise AssertionError(f"no {pattern!r} in:\n{seen}")
