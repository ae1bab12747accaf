"""ssh: the system's own client, on the machine of a run, with the run's key and its pinned host key."""

import os
import shlex
import shutil
import signal
import sys
from argparse import Namespace
from pathlib import Path
from typing import NoReturn

from gpujobs.cli.opening import find_run, load_settings
from gpujobs.cli.output import Output
from gpujobs.cli.reaching import Reached, reach
from gpujobs.errors import BadInput
from gpujobs.host import Host
from gpujobs.settings import private_opener


def ssh(args: Namespace, out: Output) -> int:
    """Become the ssh client; with --print or --json only say how. No password is ever in its arguments."""
    with Host.open(load_settings()) as host:
        run = find_run(host.ledger, args.run)
        reached = reach(host, run)
        known = _known_hosts(reached, host.settings.runs / run.id)
    command = [*_command(reached, known), *args.words]
    if args.show or out.json:
        out.value({"run_id": run.id, "machine": reached.name, "command": command})
        out.text(shlex.join(command))
        return 0
    program = shutil.which("ssh")
    if program is None:
        raise BadInput("there is no ssh program on PATH; install OpenSSH's client (apt install openssh-client)")
    return _become(program, command)


def _become(program: str, command: list[str]) -> NoReturn:
    sys.stdout.flush()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and an ignored signal stays so across exec
    os.execv(program, command)  # noqa: S606 - no shell, and a list of our own


def _known_hosts(reached: Reached, folder: Path) -> Path:
    path = folder / "known_hosts"
    with open(path, "w", encoding="utf-8", opener=private_opener) as file:
        file.write(f"[{reached.access.host}]:{reached.access.port} {reached.host_key}\n")
        if reached.access.port == 22:  # noqa: PLR2004 - ssh looks the usual port up without brackets
            file.write(f"{reached.access.host} {reached.host_key}\n")
    return path


def _command(reached: Reached, known: Path) -> list[str]:
    options = {
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": f'"{known}"',
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "UpdateHostKeys": "no",
    }
    flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    access = reached.access
    return ["ssh", "-i", str(reached.key), *flags, "-p", str(access.port), "-l", access.user, access.host]
