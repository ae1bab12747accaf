"""What a command wrote, summed up as it goes by."""

import hashlib
from typing import IO

HEAD_BYTES = 200
_KEPT_BYTES = HEAD_BYTES + 64  # so that a secret across the edge is still seen whole when it is taken out


class OutputSum:
    """Counts and hashes output, and keeps how it begins."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self.head = b""
        self._hash = hashlib.sha256()

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        if len(self.head) < _KEPT_BYTES:
            self.head += data[: _KEPT_BYTES - len(self.head)]
        self.size_bytes += len(data)
        self._hash.update(data)

    @property
    def sha256(self) -> str:
        """The hash of all bytes so far, in hexadecimal."""
        return self._hash.hexdigest()


def sum_of(file: IO[bytes]) -> OutputSum:
    """Return the sum of a file from its beginning."""
    output = OutputSum()
    file.seek(0)
    while data := file.read(2**20):
        output.add(data)
    return output
