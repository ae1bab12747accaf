"""A real OpenSSH server on loopback, with its own port, host key and configuration; key logins for the current user."""

import os
import pwd
import socket
import subprocess
import time
from pathlib import Path

SSHD = Path("/usr/sbin/sshd")
PRIVSEP = Path("/run/sshd")

CONFIG = """
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/authorized_keys {home}/.ssh/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
LogLevel VERBOSE
SetEnv HOME={home} PATH={path}
{more}
"""


def why_not() -> str:
    """Say why no sshd can be started here; empty if one can."""
    if not SSHD.exists():
        return f"there is no {SSHD}: install openssh-server to run these tests"
    if os.geteuid() == 0:
        PRIVSEP.mkdir(mode=0o755, exist_ok=True)  # its service would make it
    return ""


class OpenSsh:
    """Starts on construction, answers when that returns."""

    def __init__(self, folder: Path, *, more: str = "", path: str = os.environ["PATH"]) -> None:
        self.folder, self.home, self.log = folder, folder / "home", folder / "sshd.log"
        self.home.mkdir(parents=True)
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self.key = folder / "user_key"
        for name in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
        self.host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        config = folder / "sshd_config"
        config.write_text(CONFIG.format(port=self.port, folder=folder, home=self.home, more=more, path=path))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([SSHD, "-D", "-e", "-f", config], stderr=log, stdin=subprocess.DEVNULL)
        self._await()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)

    def _await(self) -> None:
        ends_at = time.monotonic() + 60
        while b"Server listening" not in self.log.read_bytes():
            if self.process.poll() is not None or time.monotonic() > ends_at:
                raise RuntimeError(f"sshd did not start: {self.log.read_text()}")
            time.sleep(0.01)
