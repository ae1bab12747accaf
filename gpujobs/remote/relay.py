"""Joins an SSH channel to the foreman's socket beside this file: `python relay.py`. Python 3.6 or later."""

import os
import select
import socket
from typing import Any, List

PIECE_BYTES = 2**16


def main() -> None:
    """Carry bytes both ways until either side ends."""
    os.chdir(os.path.dirname(os.path.abspath(__file__)))  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as link:
        link.connect("sock")
        while True:
            sources: List[Any] = [0, link]
            for ready in select.select(sources, [], [])[0]:
                data = os.read(0, PIECE_BYTES) if ready == 0 else link.recv(PIECE_BYTES)
                if not data:
                    return
                if ready == 0:
                    link.sendall(data)
                    continue
                while data:
                    data = data[os.write(1, data) :]


if __name__ == "__main__":
    try:
        main()
    except OSError:  # either side is gone
        pass
