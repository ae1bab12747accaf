"""The files of a machine in memory, and the commands by which they go up and come down."""

import hashlib
import io
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

Send = Callable[[bytes], object]
_STAMP = "2026-01-01 00:00:00.0 +0000"
_UPLOAD = re.compile(r"mkdir -p (?P<path>\S+) && cd \S+ && tar -xof -")
_DRAFT = re.compile(r"! \[ -d (?P<path>\S+) \] \|\| .* rm -f (?P<old>\S+) && tee (?P<draft>\S+) \| .*", re.DOTALL)
_PUT = re.compile(r"chmod [0-7]+ (?P<draft>\S+) && mv -f \S+ (?P<path>\S+)")
_LOOK = re.compile(r"if \[ -d (?P<path>\S+) \]; then echo folder")
_HASH = re.compile(r"\{ openssl .*\} <(?P<path>\S+)")
_READ = re.compile(r"cat <(?P<path>\S+)")
_HASHES = re.compile(r"cd (?P<path>\S+) && find -L \. .* sha256sum")
_PACK = re.compile(r"cd (?P<path>\S+) && if tar --version")
PURPOSES: Mapping[str, "re.Pattern[str]"] = {
    "upload a folder": _UPLOAD,
    "upload a file": _DRAFT,
    "put a file in place": _PUT,
    "look at an output": _LOOK,
    "hash an output": _HASH,
    "hash a folder": _HASHES,
    "pack a folder": _PACK,
    "read an output": _READ,
}


class SimFiles:
    """What lies on a machine's disks, by absolute path; a folder is there where a file is below it."""

    def __init__(self) -> None:
        """Be empty."""
        self.content: dict[str, bytes] = {}

    def do(self, command: str, stdin: bytes, send: Send) -> int | None:
        """Do a command; give its exit code, None for one that is not about files."""
        acts: Mapping[str, Callable[[str, bytes, Send], int]] = {
            "upload a folder": self._unpack,
            "look at an output": self._look,
            "hash an output": self._hash,
            "read an output": self._read,
            "hash a folder": self._hashes,
            "pack a folder": self._pack,
        }
        name, match = next(
            ((name, found) for name, one in PURPOSES.items() if (found := one.match(command))), ("", None)
        )
        if match is None:
            return None
        path = _plain(match["path"])
        if name == "upload a file":
            return self._draft(path, _plain(match["draft"]), stdin, send)
        if name == "put a file in place":
            self.content[path] = self.content.pop(_plain(match["draft"]))
            return 0
        return acts[name](path, stdin, send)

    def below(self, path: str) -> Mapping[str, bytes]:
        """Give the files below a folder, by their paths in it, sorted."""
        inside = {
            one.removeprefix(f"{path}/"): data for one, data in self.content.items() if one.startswith(f"{path}/")
        }
        return dict(sorted(inside.items()))

    def _unpack(self, path: str, stdin: bytes, send: Send) -> int:
        del send
        with tarfile.open(fileobj=io.BytesIO(stdin)) as archive:
            for member in archive:
                if file := archive.extractfile(member):
                    self.content[str(PurePosixPath(path) / member.name)] = file.read()
        return 0

    def _draft(self, path: str, draft: str, stdin: bytes, send: Send) -> int:
        if self.below(path):
            return 1
        for old in [one for one in self.content if re.fullmatch(re.escape(path) + r"\.gj-[0-9a-f]{8}", one)]:
            del self.content[old]
        self.content[draft] = stdin
        send(b"%s *stdin\n%d\n" % (_digest(stdin), len(stdin)))
        return 0

    def _look(self, path: str, stdin: bytes, send: Send) -> int:
        del stdin
        found = self.below(path)
        if path in self.content:
            send(f"file\n{len(self.content[path])} {_STAMP}\n".encode())
        else:
            send(
                "".join(
                    ["folder\n", *(f"{len(data)} {_STAMP}\n" for data in found.values())] if found else ["missing\n"]
                ).encode()
            )
        return 0

    def _hash(self, path: str, stdin: bytes, send: Send) -> int:
        del stdin
        if path not in self.content:
            return 1
        send(_digest(self.content[path]) + b" *stdin\n")
        return 0

    def _read(self, path: str, stdin: bytes, send: Send) -> int:
        del stdin
        if path not in self.content:
            return 1
        send(self.content[path])
        return 0

    def _hashes(self, path: str, stdin: bytes, send: Send) -> int:
        del stdin
        send(b"".join(b"%s  ./%s\n" % (_digest(data), name.encode()) for name, data in self.below(path).items()))
        return 0

    def _pack(self, path: str, stdin: bytes, send: Send) -> int:
        del stdin
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
            found = self.below(path)
            folders = {str(parent) for name in found for parent in PurePosixPath(name).parents}
            for name in sorted(folders | found.keys()):
                member = tarfile.TarInfo("./" if name == "." else f"./{name}")
                member.type = tarfile.REGTYPE if name in found else tarfile.DIRTYPE
                member.size = len(found.get(name, b""))
                archive.addfile(member, io.BytesIO(found.get(name, b"")))
        send(stream.getvalue())
        return 0


def _plain(path: str) -> str:
    return path.replace("'", "")


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
