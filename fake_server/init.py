"""Pid 1 of a fake machine: builds its root, starts what it is asked to start, reaps, and ends with its owner.

Runs by itself (``python -I -S init.py FD``) with the standard library alone, and is never imported. FD is one end of a
SOCK_SEQPACKET pair. Each request is one packet that carries a memory file with a marshalled dict and, for a spawn, the
three standard streams. Each reply is one packet of plain words: ``ready``, ``error TEXT``, ``exit NUMBER CODE``, or
``terminal NUMBER`` with the terminal's master. When the socket closes, everything in the machine is killed.

Every machine starts with this script, so it keeps to what costs no start-up: pathlib, json, typing, contextlib, and the
Python halves of socket and signal would triple it.
"""
# ruff: noqa: PTH103, PTH110, PTH112, PTH120, PTH123, PTH208, PTH211, SIM105

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # typeshed leaves the C half out
import _socket as socket
import ctypes
import fcntl
import marshal
import os
import resource
import select
import struct
import sys
import termios
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MS_BIND, MS_REC, MS_NOSUID, MS_NODEV, MS_NOEXEC, MNT_DETACH = 4096, 16384, 2, 4, 8, 2
AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR, MOUNT_ATTR_RDONLY, MOUNT_ATTR_NODEV = -100, 0x8000, 442, 1, 4
PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER = 24, 36
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Set the machine up, say so, and serve until the owner's end of the socket closes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request, _ = receive(control)
    try:
        set_up(request)
    except OSError as error:
        reply(control, f"error {error.strerror}: {error.filename or 'set-up'}")
        sys.exit(1)
    reply(control, "ready")
    Machine(control, isolated=request["isolation"] != "none").serve()


def set_up(plan: Any) -> None:
    if plan["isolation"] == "unshare":
        socket.sethostname(plan["hostname"])
        build_root(plan["root"], plan["mounts"])
        drop_capabilities(plan["capabilities"])
    if plan["isolation"] == "none":
        check(LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "PR_SET_CHILD_SUBREAPER")
    for number, wanted in plan["limits"]:
        hard = resource.getrlimit(number)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(number, (value, value))
    os.umask(0o022)


def build_root(root: str, mounts: list[list[str]]) -> None:
    """Mount everything below ``root``, make it the root of this mount namespace, and let the host's go."""
    mount("tmpfs", root, "tmpfs", MS_NODEV, "mode=755,size=16m")
    for kind, source, target in mounts:
        MOUNTS[kind](source, root + target)
    os.chdir(root)
    check(LIBC.pivot_root(b".", b"."), "pivot_root")
    check(LIBC.umount2(b".", MNT_DETACH), "umount of the host's root")
    os.chdir("/")


def mount_tmpfs(mode: str, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    mount("tmpfs", target, "tmpfs", MS_NODEV | MS_NOSUID, f"mode={mode}")


def bind(source: str, target: str) -> None:
    touch_target(source, target)
    mount(source, target, None, MS_BIND | MS_REC)
    set_attributes(target, MOUNT_ATTR_NODEV)


def bind_device(source: str, target: str) -> None:
    touch_target(source, target)
    mount(source, target, None, MS_BIND)


def bind_read_only(source: str, target: str) -> None:
    touch_target(source, target)
    mount(source, target, None, MS_BIND | MS_REC)
    set_attributes(target, MOUNT_ATTR_RDONLY)


def link(value: str, target: str) -> None:
    os.symlink(value, target)


def mount_proc(_source: str, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    mount("proc", target, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name in ("sys", "sysrq-trigger", "irq", "bus", "fs"):
        if os.path.exists(f"{target}/{name}"):
            bind_read_only(f"{target}/{name}", f"{target}/{name}")
    for name in ("kcore", "keys", "timer_list"):
        if os.path.exists(f"{target}/{name}"):
            mount("/dev/null", f"{target}/{name}", None, MS_BIND)


def mount_dev(_source: str, target: str) -> None:
    mount_tmpfs("755", target)
    for name in DEVICES:
        bind_device(f"/dev/{name}", f"{target}/{name}")
    os.makedirs(f"{target}/pts")
    mount("devpts", f"{target}/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    mount_tmpfs("1777", f"{target}/shm")
    os.symlink("pts/ptmx", f"{target}/ptmx")
    os.symlink("/proc/self/fd", f"{target}/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{target}/{name}")


MOUNTS = {
    "tmpfs": mount_tmpfs,
    "rw": bind,
    "ro": bind_read_only,
    "link": link,
    "proc": mount_proc,
    "dev": mount_dev,
}


def touch_target(source: str, target: str) -> None:
    if os.path.lexists(target):
        return
    if os.path.isdir(source):
        os.makedirs(target)
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    encoded = kind.encode() if kind else None
    check(LIBC.mount(os.fsencode(source), os.fsencode(target), encoded, flags, data.encode() or None), target)


def set_attributes(target: str, attributes: int) -> None:
    """Set mount attributes for the whole tree below ``target`` (Linux 5.12)."""
    wanted = struct.pack("QQQQ", attributes, 0, 0, 0)
    call = LIBC.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, os.fsencode(target), AT_RECURSIVE, wanted, len(wanted))
    check(call, target)


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def drop_capabilities(kept: list[int]) -> None:
    """Take away what a program started here could regain by exec: mounting, devices, the host's clock and modules."""
    for number in range(64):
        if number not in kept and LIBC.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            return


def receive(control: socket.socket) -> tuple[Any, list[int]]:
    """Return the next request and the descriptors that came with it; (None, []) once the owner is gone."""
    data, ancillary, _, _ = control.recvmsg(16, socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC)
    if not data:
        return None, []
    received = [fd for _, _, raw in ancillary for fd in struct.unpack(f"{len(raw) // 4}i", raw)]
    with open(received[0], "rb") as payload:
        payload.seek(0)
        # written by the owner, which runs the same interpreter
        return marshal.loads(payload.read()), received[1:]  # noqa: S302


def reply(control: socket.socket, words: str, fds: tuple[int, ...] = ()) -> None:
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))
    control.sendmsg([words.encode()], [rights] if fds else [])


class Machine:
    """The processes of one machine, by the owner's number for each."""

    def __init__(self, control: socket.socket, *, isolated: bool) -> None:
        self.control, self.isolated = control, isolated
        self.numbers: dict[int, int] = {}
        self.pids: dict[int, int] = {}
        self.terminating = False
        self.file_limit = -1

    def serve(self) -> None:
        woken, wake = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poller = select.poll()
        poller.register(self.control, select.POLLIN)
        poller.register(woken, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poller.poll()]
            if woken in ready:
                os.read(woken, 4096)
                self.reap()
            if self.control.fileno() in ready:
                self.obey()

    def obey(self) -> None:
        request, fds = receive(self.control)
        if request is None:
            self.end()
        elif "argv" in request:
            self.spawn(request, fds)
        elif "file_limit" in request:
            self.limit_files(request["file_limit"])
        elif "signal" in request:
            self.signal(request["id"], request["signal"])
        else:
            self.terminating = True
            self.signal_all(signal.SIGTERM)
            self.reap()

    def spawn(self, request: Any, fds: list[int]) -> None:
        master, slave = open_terminal(request["terminal"]) if request["terminal"] else (-1, -1)
        streams = [slave] * 3 if slave >= 0 else fds
        pid = os.fork()
        if pid == 0:
            limit_files(0, self.file_limit)
            run(request, streams, terminal=slave >= 0)
        self.numbers[pid], self.pids[request["id"]] = request["id"], pid
        if master >= 0:
            reply(self.control, f"terminal {request['id']}", (master,))
        for fd in (master, slave, *fds):
            if fd >= 0:
                os.close(fd)

    def limit_files(self, size: int) -> None:
        self.file_limit = size
        for _ in range(2):  # a process may have forked on the first round
            for pid in everyone_else() if self.isolated else descendants():
                limit_files(pid, size)

    def signal(self, number: int, sign: int) -> None:
        if number in self.pids:
            try:
                os.killpg(self.pids[number], sign)
            except OSError:
                pass

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                if self.terminating:
                    os._exit(0)
                return
            if pid == 0:
                return
            number = self.numbers.pop(pid, None)
            if number is not None:
                del self.pids[number]
                reply(self.control, f"exit {number} {os.waitstatus_to_exitcode(status)}")

    def end(self) -> None:
        """Kill everything and go. In a pid namespace the kernel does the rest when this process ends."""
        deadline = time.monotonic() + 2
        while not self.isolated and time.monotonic() < deadline and descendants():
            self.signal_all(signal.SIGKILL)
            self.discard_dead()
        os._exit(0)

    def discard_dead(self) -> None:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return

    def signal_all(self, sign: int) -> None:
        for pid in [-1] if self.isolated else descendants():
            try:
                os.kill(pid, sign)
            except OSError:
                pass


def open_terminal(size: list[int]) -> tuple[int, int]:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size))
    return master, slave


_MAY_BE_IGNORED = (  # by whoever started the fake: nohup, a shell's &, Python itself
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGCHLD,
)


def run(request: Any, streams: list[int], *, terminal: bool) -> None:
    """Become the command; never returns."""
    try:
        os.setsid()
        if terminal:
            fcntl.ioctl(streams[0], termios.TIOCSCTTY, 0)
        for number, fd in enumerate(streams):
            os.dup2(fd, number, inheritable=True)
        for sign in _MAY_BE_IGNORED:
            signal.signal(sign, signal.SIG_DFL)
        if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # to what starts on a full disk that is an error, no death
        os.chdir(request["cwd"])
        name = {"SSH_TTY": os.ttyname(0)} if terminal else {}
        os.execve(request["program"], request["argv"], request["env"] | name)  # noqa: S606 - the command is the client's, who is root here
    except OSError as error:
        os.write(2, f"{request['argv'][0]}: {error.strerror}\n".encode())
    finally:
        os._exit(126)


def limit_files(pid: int, size: int) -> None:
    """Let a process (0: this one) grow no file beyond ``size`` bytes; -1 is no limit."""
    try:
        hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
    except OSError:
        pass


def everyone_else() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]


def descendants() -> list[int]:
    """Return every process below this one, from /proc: without a pid namespace there is no other list."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as stat:
                    parents[int(name)] = int(stat.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {os.getpid()})


if __name__ == "__main__":
    main()
