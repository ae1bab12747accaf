"""What an attempt brings home from its machine: each output whole or not at all."""

import posixpath
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from gpujobs.errors import Missing
from gpujobs.line import Line
from gpujobs.renting import Job
from gpujobs.runner import Runner
from gpujobs.settings import private_folder
from gpujobs.shell import Shell
from gpujobs.transfer import pull
from gpujobs.transfer_place import discard, fresh_folder, swap, tidy

HEARTBEAT_S = 60.0
LeftThere = Callable[[], Mapping[Path, Mapping[str, str]]]


class Homeward:
    """Pulls over one machine's line."""

    def __init__(self, job: Job, line: Line, *, runner: Callable[[Shell], Runner], left_there: LeftThere) -> None:
        """Pull over `line`; `left_there` says what else than the outputs, as an attempt is told it."""
        self._job, self._line, self._runner, self._left_there = job, line, runner, left_there

    def outputs(self) -> Sequence[str]:
        """Bring every output home, and give those that do not exist. Raises what `Line.insist` raises."""
        missing = []
        for name, remote in self._job.recipe.outputs.items():
            try:
                self._line.insist(partial(self._pull_one, self._job.folder.outputs / name, remote))
            except Missing:
                missing.append(f"{name} ({remote})")
        return missing

    def left(self) -> None:
        """Bring home what is there of what was left, by folder."""
        for place, names in self._left_there().items():
            tidy(place)
            fresh = fresh_folder(place)
            new = private_folder(fresh / "new")
            try:
                for name, remote in names.items():
                    with suppress(Missing):
                        self._line.insist(partial(self._pull_one, new / name, remote))
            finally:
                if any(new.iterdir()):
                    swap(new, place)
                discard(fresh)

    def _pull_one(self, local: Path, remote: str, shell: Shell) -> None:
        clock, runner = self._job.host.clock, self._runner(shell)
        beaten_at = clock.monotonic()

        def progress(done: int, total: int | None) -> None:
            nonlocal beaten_at
            self._job.reporter.progress(f"downloading {local.name}", done, total)
            if clock.monotonic() - beaten_at > HEARTBEAT_S:  # a long download must not outlast the machine's linger
                beaten_at = clock.monotonic()
                runner.heartbeat()

        runner.heartbeat()
        pull(shell, posixpath.join(runner.work, remote), local, progress=progress, stop=self._line.stop)
