"""The SSH server of one machine: asyncssh for the protocol, the machine's own files and processes behind it."""

import asyncio
import base64
import hmac
import logging
import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import asyncssh

from fake_server.fault_rules import Strike
from fake_server.follower import Follower
from fake_server.proxy import Proxy, ProxyLoop, listener
from fake_server.session import Inside, Session
from fake_server.trouble import Trouble

KEYS_FILE_LIMIT_BYTES = 1024 * 1024
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# What a command line or an environment holds does not belong in the log of whoever runs the fake.
logging.getLogger("asyncssh").setLevel(logging.WARNING)


def load_host_key(path: Path) -> asyncssh.SSHKey:
    """Return the machine's own key, which is made on first use and kept (mode 0600)."""
    if path.exists():
        return asyncssh.read_private_key(path)
    key = asyncssh.generate_private_key("ssh-ed25519")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(key.export_private_key())
    return key


def public_line(key: asyncssh.SSHKey) -> str:
    """Return "ssh-ed25519 AAAA…"."""
    return " ".join(key.export_public_key().decode().split()[:2])


@dataclass(frozen=True, slots=True)
class LoginRules:
    """Who may come in: with which password, with whose keys below ``root``, and what faults make of it."""

    password: str = field(repr=False)
    root: Path
    trouble: Trouble | None = None

    def struck(self, kind: str) -> Strike | None:
        """Return the fault of the machine that is in force now."""
        return None if self.trouble is None else self.trouble.of_machine(kind)


class Sshd:
    """Listens behind a proxy on a reserved address until closed; faults may close its door or change its key."""

    def __init__(self, inside: Inside, *, address: socket.socket, key: asyncssh.SSHKey, login: LoginRules) -> None:
        self._inside, self._address, self._key, self._login = inside, address, key, login
        self._other_key: asyncssh.SSHKey | None = None
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._proxy = Proxy(login.trouble)
        self._loop = asyncio.get_running_loop()
        self._follower = Follower(login.trouble, self._mind)
        self._closed = False

    async def open(self) -> None:
        """Listen; from here on connections are answered, unless a fault has it otherwise."""
        await self._follower.open()

    def close(self) -> None:
        """Stop listening and cut every connection, without a word to the client. Idempotent."""
        self._closed = True
        self._follower.close()
        self._shut_door()
        self._address.close()
        for connection in tuple(self._connections):
            connection.abort()
        self._loop.call_soon(self._proxy.close)

    async def wait_closed(self) -> None:
        """Wait until the sessions of every cut connection have let go of their commands."""
        await asyncio.gather(*(connection.wait_closed() for connection in tuple(self._connections)))

    async def _mind(self) -> None:
        """Open or shut the door, and show the key, as the faults of the moment have it."""
        refused = self._login.struck("ssh_refused")
        self._login.struck("wrong_password")  # its seconds begin now
        if refused is not None:
            self._shut_door()
            self._follower.again_after(refused)
        elif self._acceptor is None and not self._closed:
            self._acceptor = await self._listen()
        if self._closed:
            self._shut_door()
        if self._acceptor is not None:
            self._acceptor.update(server_host_keys=[self._key_to_show()])
        self._proxy.reconsider()

    async def _listen(self) -> asyncssh.SSHAcceptor:
        sock = listener(self._address)
        if isinstance(self._loop, ProxyLoop):
            self._loop.proxies[sock] = self._proxy
        try:
            return await asyncssh.listen(
                sock=sock,
                server_factory=lambda: Login(self._inside, self._connections, self._login),
                server_host_keys=[self._key],
                encoding=None,
                line_editor=False,
                agent_forwarding=False,
                gss_host=None,
                compression_algs=["none", "zlib@openssh.com"],
            )
        except BaseException:  # a machine that is stopped while it boots, too
            self._loop.remove_reader(sock)
            sock.close()
            raise

    def _shut_door(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None

    def _key_to_show(self) -> asyncssh.SSHKey:
        if self._login.struck("changed_host_key") is None:
            return self._key
        if self._other_key is None:
            self._other_key = asyncssh.generate_private_key("ssh-ed25519")
        return self._other_key


class Login(asyncssh.SSHServer):
    """One connection: who may come in, and what is opened for them."""

    def __init__(self, inside: Inside, connections: set[asyncssh.SSHServerConnection], login: LoginRules) -> None:
        self._inside, self._connections, self._login = inside, connections, login
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Count the connection, so that it dies with the machine."""
        self._connection = conn
        self._connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        del exc
        if self._connection is not None:
            self._connections.discard(self._connection)

    def password_auth_supported(self) -> bool:
        """Accept passwords."""
        return True

    def validate_password(self, username: str, password: str) -> bool:
        """Let root in with the password that was issued."""
        right = hmac.compare_digest(password.encode(), self._login.password.encode())
        return username == "root" and right and self._login.struck("wrong_password") is None

    def public_key_auth_supported(self) -> bool:
        """Accept keys."""
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Let root in with a key of the machine's own authorized_keys, read anew each time."""
        return username == "root" and key.public_data in authorized_keys(self._login.root)

    def session_requested(self) -> Session:
        """Open a session."""
        return Session(self._inside, self._peer())

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        """Forward to the machine's loopback, and nowhere else."""
        del dest_port, orig_host, orig_port
        return dest_host in LOOPBACK

    def _peer(self) -> dict[str, str]:
        if self._connection is None:
            return {}
        there, here = (self._connection.get_extra_info(name)[:2] for name in ("peername", "sockname"))
        return {
            "SSH_CLIENT": f"{there[0]} {there[1]} {here[1]}",
            "SSH_CONNECTION": f"{there[0]} {there[1]} {here[0]} {here[1]}",
        }


def authorized_keys(root: Path) -> set[bytes]:
    """Return the keys in ``.ssh/authorized_keys`` below root's home, with OpenSSH's StrictModes, following no link."""
    keys = set()
    for line in read_strictly(root).splitlines():
        words = line.split()
        for kind, data in pairwise(words):
            if kind.startswith(("ssh-", "ecdsa-", "sk-")) and not line.lstrip().startswith("#"):
                with suppress(ValueError):
                    keys.add(base64.b64decode(data, validate=True))
    return keys


def read_strictly(root: Path) -> str:
    fd = -1
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        for name, flags in ((".ssh", os.O_DIRECTORY), ("authorized_keys", os.O_NONBLOCK)):
            try:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | flags, dir_fd=folder)
            finally:
                os.close(folder)
            folder = fd
            if os.fstat(fd).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                os.close(fd)
                return ""
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as file:
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        return file.read(KEYS_FILE_LIMIT_BYTES).decode(errors="replace") if regular else ""
