"""How long FakeCloud takes to start and to stop, beside moto's ThreadedMotoServer (or a bare Flask app without it).

Each round starts and stops both, in warm processes that take turns. A start ends with the first HTTP reply. Prints
medians in milliseconds, the ratio, and fails over 100 ms to start or 50 ms to stop. The peer gets a virtual
environment of its own in a temporary folder.
python benchmarks/fake_start.py [ROUNDS]
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT_MS = {"start": 100.0, "stop": 50.0}
LOOP = """
import json, sys, time, urllib.error, urllib.request
{setup}
def ask(url):
    try:
        urllib.request.urlopen(url, timeout=10).read()
    except urllib.error.HTTPError as error:
        error.read()
for line in sys.stdin:
    began = time.perf_counter()
    {start}
    ask(url)
    up = time.perf_counter()
    {stop}
    print(json.dumps([(up - began) * 1000, (time.perf_counter() - up) * 1000]), flush=True)
"""
OURS = LOOP.format(
    setup="from fake_server import FakeCloud",
    start="cloud = FakeCloud().__enter__(); url = cloud.url + '/_fake/state'",
    stop="cloud.__exit__(None, None, None)",
)
MOTO = LOOP.format(
    setup="from moto.server import ThreadedMotoServer\nimport logging; logging.disable()",
    start="server = ThreadedMotoServer(port=0, verbose=False); server.start(); "
    "url = 'http://%s:%s/moto-api/' % server.get_host_and_port()",
    stop="server.stop()",
)
FLASK = LOOP.format(
    setup="import threading; from flask import Flask; from werkzeug.serving import make_server",
    start="server = make_server('127.0.0.1', 0, Flask('bare'), threaded=True); "
    "thread = threading.Thread(target=server.serve_forever); thread.start(); "
    "url = 'http://127.0.0.1:%d/' % server.server_port",
    stop="server.shutdown(); thread.join()",
)


def main(rounds: int) -> int:
    """Measure and print; 1 if ours is over its limit."""
    with tempfile.TemporaryDirectory() as folder:
        name, python, script = _peer(Path(folder))
        with _turns(sys.executable, OURS) as ours, _turns(python, script) as peer:
            next(ours), next(peer)  # the first of each pays for imports
            measured = [(next(ours), next(peer)) for _ in range(rounds)]
    over = False
    for index, what in enumerate(LIMIT_MS):
        our_ms, peer_ms = (statistics.median(pair[side][index] for pair in measured) for side in (0, 1))
        worst_ms = max(pair[0][index] for pair in measured)
        over = over or our_ms > LIMIT_MS[what]
        print(
            f"{what}: FakeCloud {our_ms:.1f} ms (worst {worst_ms:.1f}, limit {LIMIT_MS[what]:.0f}), "
            f"{name} {peer_ms:.1f} ms, ratio {our_ms / peer_ms:.2f}"
        )
    return int(over)


def _peer(folder: Path) -> tuple[str, str, str]:
    venv, python = folder / "venv", str(folder / "venv/bin/python")
    install = ["uv", "pip", "install", "-q", "-p", python, "moto[server]"]
    for command in (["uv", "venv", "-q", "-p", sys.executable, str(venv)], install):
        if subprocess.run(command, check=False).returncode:
            return "a bare Flask app", sys.executable, FLASK
    return "ThreadedMotoServer", python, MOTO


@contextmanager
def _turns(python: str, script: str) -> Iterator[Iterator[Sequence[float]]]:
    command = [python, "-W", "ignore", "-c", script]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, cwd=ROOT, **pipes) as process:  # type: ignore[call-overload]
        yield _ask(process)
        process.stdin.close()
        process.wait()


def _ask(process: "subprocess.Popen[str]") -> Iterator[Sequence[float]]:
    while True:
        print("go", file=process.stdin, flush=True)
        line = next(line for line in process.stdout or [] if line.startswith("["))
        yield json.loads(line)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
