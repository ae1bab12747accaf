"""500 machines on the fake by 50 client threads: made, run to Running, one command each over SSH, and deleted.

Prints errors, requests a second and memory, beside a bare Flask app that does nothing, on the same machine in one run.
python benchmarks/fake_load.py [MACHINES] [THREADS]
"""

import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paramiko
import requests

ROOT = Path(__file__).parent.parent
BARE = """
import logging; from flask import Flask; logging.getLogger("werkzeug").disabled = True
from werkzeug.serving import make_server
app = Flask(__name__); app.get("/")(lambda: {"code": "Success"})
server = make_server("127.0.0.1", 0, app, threaded=True)
print("listening on http://127.0.0.1:%d" % server.port, flush=True); server.serve_forever()
"""
PATIENCE_S = 300.0
POLL_S = 0.25
BURST = 100
INSTANCES = "/mdc/api/v1/clusters/host-cluster/instances"
TEMPLATE = {
    "dc_list": ["westDC2", "westDC3", "beijingDC2", "chongqingDC1", "neimengDC1"],
    "gpu_name_set": ["RTX 4090"],
    "gpu_num": 1,
    "cuda_v_from": 113,
    "cuda_v_to": 128,
    "cpu_num_from": 1,
    "cpu_num_to": 100,
    "memory_size_from": 1,
    "memory_size_to": 256,
    "price_from": 10,
    "price_to": 9000,
    "image_uuid": "base-image-l2t43iu6uk",
    "cmd": "sleep 3600",
}
INSTANCE = {
    "Cost": {"CostType": "1", "CouponID": "", "DiskSKUID": "1", "GPUSKUID": "66", "CostTime": ""},
    "VolumeMount": [],
    "namespace": "fake-user",
    "image": "images.neolink-ai.com/matrixdc/tensorflow:2.15.0-python3.10-cuda12.1.0-cudnn8-devel-ubuntu22.04",
}


@contextmanager
def served(*command: str) -> Iterator[tuple[str, int]]:
    """Start a server that prints its URL; give the URL and the process id."""
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        try:
            yield url, process.pid
        finally:
            process.terminate()


class Client:
    """One client thread's connection and counts."""

    def __init__(self, url: str) -> None:
        """Connect lazily."""
        self.url, self.calls, self.session = url, 0, requests.Session()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Make one call; any HTTP error is raised."""
        self.calls += 1
        headers = {"Authorization": "fake-token"}
        if path.startswith("/mdc"):
            headers = {"Authorization": "bearer fake-token", "namespace": "fake-user"}
        reply = self.session.request(method, self.url + path, json=body, headers=headers, timeout=120)
        reply.raise_for_status()
        got = reply.json()
        if isinstance(got, dict) and got.get("code", "Success") != "Success":
            raise RuntimeError(got)
        return got.get("data", got) if isinstance(got, dict) else got

    def autodl(self, name: str) -> str:
        """Rent, use and release a container; give what its command wrote."""
        body = {"name": name, "deployment_type": "Job", "replica_num": 1, "parallelism_num": 1}
        uuid = self.call("POST", "/api/v1/dev/deployment", {**body, "container_template": TEMPLATE})["deployment_uuid"]
        asked = {"deployment_uuid": uuid, "page_index": 1, "page_size": 10, "status": ["running"]}
        row = until(lambda: self.call("POST", "/api/v1/dev/deployment/container/list", asked)["list"])[0]
        wrote = over_ssh(row["info"]["ssh_command"], row["info"]["root_password"], f"echo {name}")
        self.call("DELETE", "/api/v1/dev/deployment", {"deployment_uuid": uuid})
        asked = {"page_index": 1, "page_size": 10, "deployment_uuid": uuid}
        until(lambda: not self.call("POST", "/api/v1/dev/deployment/list", asked)["list"])
        return wrote

    def matrixdc(self, name: str) -> str:
        """Rent, use and release an instance; give what its command wrote."""
        box = f"{INSTANCES}/{self.call('POST', INSTANCES, {**INSTANCE, 'displayName': name})['name']}"
        servers = until(lambda: self.call("GET", box).get("servers"))
        wrote = over_ssh(servers["SSH"]["sshAddr"], servers["SSH"]["sshPassword"], f"echo {name}")
        self.call("DELETE", box.replace("instances/", "instances?name="))
        until(lambda: box.rpartition("/")[2] not in {each["name"] for each in self.call("GET", INSTANCES)["nodes"]})
        return wrote


def until(look: Callable[[], Any]) -> Any:
    """Return what look returns once it is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(POLL_S)
    return found


def over_ssh(address: str, password: str, command: str) -> str:
    """Run one command, as soon as the machine's SSH server answers."""
    port, host = re.findall(r"-p ?(\d+) root@(\S+)", address)[0]
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with paramiko.SSHClient() as client:
            client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
            try:
                client.connect(
                    host, int(port), "root", password, allow_agent=False, look_for_keys=False, banner_timeout=60
                )
            except paramiko.ssh_exception.NoValidConnectionsError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)
                continue
            return client.exec_command(command, timeout=120)[1].read().decode().strip()


def storm(url: str, machines: int, threads: int) -> tuple[Counter[str], int, float, list[float]]:
    """Give errors by kind, the number of API calls, the seconds in all and of each machine."""
    errors: Counter[str] = Counter()
    clients: list[Client] = []

    def one_after_the_other(first: int) -> list[float]:
        client = Client(url)
        clients.append(client)
        took = []
        for number in range(first, machines, threads):
            name, begun = f"load-{number}", time.monotonic()
            rent = client.matrixdc if first % 5 == 4 else client.autodl
            try:
                if (wrote := rent(name)) != name:
                    errors[f"wrong output: {wrote!r}"] += 1
            except Exception as error:  # noqa: BLE001 -- whatever goes wrong is counted and shown
                errors[repr(error)[:100]] += 1
            took.append(time.monotonic() - begun)
        return took

    begun = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        took = [each for some in pool.map(one_after_the_other, range(threads)) for each in some]
    return errors, sum(client.calls for client in clients), time.monotonic() - begun, took


def burst(url: str, method: str, path: str, threads: int, body: str | None = None) -> float:
    """Give requests a second of so many threads that ask the same thing over and over."""

    def ask(_: int) -> None:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=120)
        headers = {"Authorization": "fake-token", "Content-Type": "application/json"}
        for _ in range(BURST):
            connection.request(method, path, body, headers)
            if connection.getresponse().read().find(b"Success") < 0:
                raise RuntimeError(path)
        connection.close()

    begun = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(ask, range(threads)))
    return threads * BURST / (time.monotonic() - begun)


def memory_mb(pid: int, field: str = "VmHWM") -> float:
    """Give a process's memory; VmHWM is the most that it ever had."""
    return int(re.findall(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0]) / 1024


def judged(url: str, machines: int) -> list[str]:
    """Give what the ledger of truth objects to."""
    headers = {"X-Fake-Control": "fake-control"}
    rows = requests.get(f"{url}/_fake/ledger", headers=headers, timeout=60).json()["machines"]
    wrong = [f"{len(rows)} machines were made"] if len(rows) != machines else []
    wrong += [f"{row['name']} is still there" for row in rows if row["gone_at"] is None]
    for row in rows:
        ran = [each for each in row["commands"] if each["kind"] == "exec"]
        if [(each["command"], each["exit_code"]) for each in ran] != [(f"echo {row['name']}", 0)]:
            wrong.append(f"{row['name']} ran {ran}")
    return wrong


def main() -> int:
    """Measure and print; 1 if anything went wrong."""
    machines = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else 50
    with served("-c", BARE) as (bare, pid):
        bare_rate = statistics.median(burst(bare, "GET", "/", threads) for _ in range(3))
        bare_mb = memory_mb(pid)
    with served("-m", "fake_server", "--port", "0") as (url, pid):
        path, asked = "/api/v1/dev/deployment/list", json.dumps({"page_index": 1, "page_size": 10})
        rate = statistics.median(burst(url, "POST", path, threads, asked) for _ in range(3))
        idle_mb = memory_mb(pid, "VmRSS")
        errors, calls, seconds, took = storm(url, machines, threads)
        wrong, most_mb = judged(url, machines), memory_mb(pid)
    print(f"{machines} machines by {threads} threads on {os.cpu_count()} cores: {seconds:.0f} s, {calls} API calls")
    print(f"  a machine, from create to gone: median {statistics.median(took):.1f} s, worst {max(took):.1f} s")
    print(f"  API calls a second while machines boot and run: {calls / seconds:.0f}")
    print(f"requests a second, {threads} connections: fake {rate:.0f}, bare {bare_rate:.0f}: × {rate / bare_rate:.2f}")
    print(
        f"memory in MB: fake {idle_mb:.0f} idle, {most_mb:.0f} at most, bare {bare_mb:.0f}: × {most_mb / bare_mb:.2f}"
    )
    print(f"errors: {sum(errors.values())} {dict(errors) or ''}")
    for line in wrong[:10]:
        print(f"  the ledger: {line}")
    return 1 if errors or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
