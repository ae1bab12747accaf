"""What a login and the transfers cost beside OpenSSH's own programs, on a real sshd on loopback.

    python benchmarks/transfer.py [ROUNDS]

One big file, and many small ones, up and down: ours with every hash checked, `cat` and `tar` through `ssh` with
aes128-gcm and nothing checked. Then a login with `true`. Both sides take turns, each time with a login of its own; our
Python is warm. Prints medians of the wall clock and the ratio (1.00: as fast as OpenSSH), with the ratios' middle half.
"""

import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpujobs.models import Access
from gpujobs.shell import Shell, connect
from gpujobs.transfer import pull, push_file, push_folder
from tests.sshd.openssh import OpenSsh, why_not

BIG_BYTES = 300 * 1000**2
SMALL_FILES, SMALL_BYTES = 3000, 4096
ROUNDS = 5

Action = Callable[[], object]


class Bench:
    """One sshd, what goes up and down, and both ways to move it."""

    def __init__(self, folder: Path) -> None:
        """Start the sshd and make the files."""
        self.sshd = OpenSsh(folder / "sshd")
        self._here, self._there = folder / "here", self.sshd.home
        (self._here / "small").mkdir(parents=True)
        (self._here / "big").write_bytes(os.urandom(BIG_BYTES))
        for number in range(SMALL_FILES):
            (self._here / "small" / f"{number:05}").write_bytes(os.urandom(SMALL_BYTES))
        shutil.copy(self._here / "big", self._there / "big")
        shutil.copytree(self._here / "small", self._there / "small")
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.sshd.port} {self.sshd.host_key}\n")
        options = [f"UserKnownHostsFile={folder}/known_hosts", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes"]
        self._ssh = shlex.join(
            ["ssh", "-F", "none", "-p", str(self.sshd.port), "-i", str(self.sshd.key), "-c", "aes128-gcm@openssh.com"]
            + [word for option in options for word in ("-o", option)]
            + [f"{self.sshd.user}@127.0.0.1"]
        )

    def pairs(self) -> Mapping[str, tuple[Action, Action]]:
        """Give for each row our way and OpenSSH's."""
        big, small = self._here / "big", self._here / "small"
        return {
            f"{BIG_BYTES // 1000**2} MB up": (
                lambda: self._ours(lambda shell: push_file(shell, big, "~/up")),
                lambda: self._theirs(f"cat {big} | {self._ssh} 'cat >~/up'"),
            ),
            f"{BIG_BYTES // 1000**2} MB down": (
                lambda: self._ours(lambda shell: pull(shell, "~/big", self._here / "down")),
                lambda: self._theirs(f"{self._ssh} 'cat ~/big' >{self._here}/down"),
            ),
            f"{SMALL_FILES:,} x {SMALL_BYTES // 1024} KB up": (
                lambda: self._ours(lambda shell: push_folder(shell, small, "~/ups")),
                lambda: self._theirs(f"tar -C {small} -cf - . | {self._ssh} 'mkdir ~/ups && tar -C ~/ups -xf -'"),
            ),
            f"{SMALL_FILES:,} x {SMALL_BYTES // 1024} KB down": (
                lambda: self._ours(lambda shell: pull(shell, "~/small", self._here / "downs")),
                lambda: self._theirs(
                    f"mkdir {self._here}/downs && {self._ssh} 'tar -C ~/small -c .' | tar -C {self._here}/downs -x"
                ),
            ),
            "login and true": (
                lambda: self._ours(lambda shell: shell.check("true", what="true")),
                lambda: self._theirs(f"{self._ssh} true"),
            ),
        }

    def clear(self) -> None:
        """Take away what arrived, and let the disk rest."""
        for arrived in (self._there / "up", self._there / "ups", self._here / "down", self._here / "downs"):
            if arrived.is_dir():
                shutil.rmtree(arrived)
            else:
                arrived.unlink(missing_ok=True)
        os.sync()

    def _ours(self, action: Callable[[Shell], object]) -> None:
        access = Access(host="127.0.0.1", port=self.sshd.port, user=self.sshd.user, password="")
        with connect(access, host_key=self.sshd.host_key, pkey_path=self.sshd.key) as shell:
            action(shell)

    def _theirs(self, script: str) -> None:
        subprocess.run(["bash", "-c", f"set -e -o pipefail; {script}"], check=True)


def timed_s(action: Action) -> float:
    """Give the seconds that `action` takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def main(rounds: int) -> int:
    """Measure and print."""
    if reason := why_not():
        print(reason, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        try:
            print(f"load before: {os.getloadavg()[0]:.1f}, {rounds} rounds")
            print(f"{'':18}{'gpujobs':>10}{'OpenSSH':>10}{'ratio':>8}   middle half")
            for name, pair in bench.pairs().items():
                _report(name, _turns(bench, pair, rounds))
        finally:
            bench.sshd.close()
    return 0


def _turns(bench: Bench, pair: tuple[Action, Action], rounds: int) -> list[tuple[float, float]]:
    found = []
    for number in range(rounds + 1):  # the first pays for cold caches and imports
        took = [0.0, 0.0]
        for side in (0, 1) if number % 2 else (1, 0):
            bench.clear()
            took[side] = timed_s(pair[side])
        found.append((took[0], took[1]))
    return found[1:]


def _report(name: str, found: list[tuple[float, float]]) -> None:
    ours_s, theirs_s = (statistics.median(pair[side] for pair in found) for side in (0, 1))
    ratios = sorted(ours / theirs for ours, theirs in found)
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    print(
        f"{name:18}{ours_s:9.3f}s{theirs_s:9.3f}s{statistics.median(ratios):8.2f}   {low:.2f} to {high:.2f}", flush=True
    )


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS))
