"""What a machine can see and change, under each isolation that this host offers."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fake_server import sandbox
from fake_server.image import ImageError
from fake_server.spec import Isolation
from tests.fake_server.machines.clients import Cloud, host_commands_with, until


def force(cloud: Cloud, isolation: Isolation) -> None:
    """Use one isolation, or skip where it does not work."""
    try:
        scratch = cloud.base / isolation
        scratch.mkdir()
        sandbox.probe(isolation, scratch)
    except sandbox.SandboxError as error:
        pytest.skip(f"{isolation.upper()} DOES NOT WORK HERE, SO ITS ISOLATION WAS NOT TESTED: {error}")
    vars(cloud.containers)["isolation"] = isolation


@pytest.fixture(params=["unshare", "bubblewrap"])
def isolated(cloud: Cloud, request: pytest.FixtureRequest) -> Cloud:
    force(cloud, request.param)
    return cloud


def test_machine_sees_a_root_of_its_own(isolated: Cloud) -> None:
    machine = isolated.boot()
    optional = {name for name in ("lib32", "lib64", "libx32") if Path("/", name).exists()}
    own = {"bin", "dev", "etc", "home", "lib", "mnt", "opt", "proc", "root", "run", "sbin", "srv", "tmp", "usr", "var"}
    assert set(machine.text("ls /").split()) == own | optional
    for hidden in (Path.home() / ".ssh", Path(__file__), isolated.base, Path("/etc/shadow"), Path(sys.executable)):
        assert machine.run(f"ls -d {hidden}").code != 0
        assert machine.run(f"ls -d /..{hidden}").code != 0, "the host's root must not lie under ours"
    assert (
        machine.text("hostname; cat /etc/hostname; id -un; echo ~; pwd") == "host-one\nhost-one\nroot\n/root\n/root\n"
    )


def test_machine_has_own_processes_alone(isolated: Cloud) -> None:
    isolated.boot("other", cmd="sleep 98761")
    machine = isolated.boot()
    seen = machine.text("ps -eo args=")
    assert "98761" not in seen
    assert machine.run(f"kill -0 {os.getpid()}").code != 0
    assert len(seen.splitlines()) < 5


def test_machine_cannot_change_the_host(isolated: Cloud) -> None:
    machine = isolated.boot()
    for attempt in (
        "touch /usr/bin/x",
        "touch /bin/x",
        "mount -o remount,rw /usr",
        "mount -t tmpfs none /mnt",
        "echo 1 > /proc/sys/kernel/core_pattern",
        "mknod /tmp/disk b 8 0",
        "umount /root",
    ):
        assert machine.run(attempt).code != 0, attempt
    assert machine.text("cat /proc/sys/kernel/core_pattern") == Path("/proc/sys/kernel/core_pattern").read_text()


def test_environment_is_clean_and_carries_the_providers_variables(
    isolated: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTODL_TOKEN", "do-not-leak")
    machine = isolated.boot()
    seen = dict(line.split("=", 1) for line in machine.text("env").splitlines())
    assert {name: seen[name] for name in ("HOME", "USER", "SHELL", "LANG", "AutoDLContainerUUID")} == {
        "HOME": "/root",
        "USER": "root",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "AutoDLContainerUUID": "uuid-1",
    }
    assert seen["PATH"] == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert "do-not-leak" not in machine.text("env; cat /proc/*/environ 2>/dev/null || true")


def test_devices_work(isolated: Cloud) -> None:
    machine = isolated.boot()
    assert machine.text("head -c 5 /dev/zero | wc -c; : > /dev/null; echo x > /dev/shm/a; cat <(echo fd)") == "5\nfd\n"
    assert machine.run("echo out > /dev/stdout; echo err > /dev/stderr").err == b"err\n"
    assert machine.run("echo deep | base64 </dev/urandom | head -c 10 | wc -c").out == b"10\n"


def test_python_with_numpy_is_at_conda_and_not_on_the_path(isolated: Cloud) -> None:
    machine = isolated.boot()
    assert machine.text(
        "/root/miniconda3/bin/python3 -c 'import numpy, sys; print(numpy.arange(4).sum(), sys.prefix)'"
    ) == "6 /root/miniconda3\n"  # fmt: skip
    assert "miniconda3" not in machine.text("command -v python3 || true")
    assert machine.run("python3 -c 'import numpy'").code != 0
    assert machine.text("bash -lic 'command -v python' 2>/dev/null") == "/root/miniconda3/bin/python\n"


def test_conda_may_be_elsewhere(isolated: Cloud) -> None:
    machine = isolated.boot(conda="/opt/miniconda3")
    assert machine.text("/opt/miniconda3/bin/python -c 'import numpy, sys; print(sys.prefix)'") == "/opt/miniconda3\n"


def test_venv_works_and_sees_numpy_with_system_packages(cloud: Cloud) -> None:
    machine = cloud.boot()
    machine.text("/root/miniconda3/bin/python3 -m venv --system-site-packages --without-pip env")
    assert machine.text("env/bin/python -c 'import numpy, sys; print(sys.prefix)'") == "/root/env\n"
    machine.text("/root/miniconda3/bin/python3 -m venv --without-pip bare")
    assert machine.run("bare/bin/python -c 'import numpy'").code != 0


def test_packages_can_be_added_to_conda_and_stay(cloud: Cloud) -> None:
    machine = cloud.boot()
    machine.text(
        "echo 'x = 41' > $(/root/miniconda3/bin/python -c 'import site; print(site.getsitepackages()[0])')/mine.py"
    )
    cloud.containers.stop("one")
    assert cloud.boot().text("/root/miniconda3/bin/python -c 'import mine; print(mine.x)'") == "41\n"


def test_disk_persists_over_stop_and_start(isolated: Cloud) -> None:
    places = ("/root/f", "/tmp/f", "/var/log/f", "/opt/f", "/home/f", "/srv/f", "/usr/local/bin/f", "/mnt/f", "/etc/f")
    machine = isolated.boot()
    machine.text("; ".join(f"echo {place} > {place}" for place in places))
    machine.text("echo gone > /run/f; echo gone > /dev/shm/f; rm ~/.bashrc")
    isolated.containers.stop("one")
    machine = isolated.boot()
    assert machine.text(f"cat {' '.join(places)}").split() == list(places)
    assert machine.text("ls -A /run /dev/shm ~/.bashrc 2>/dev/null || true").count("f\n") == 0


def test_copy_of_the_disk_carries_files_but_neither_volumes_nor_the_image(isolated: Cloud) -> None:
    data = isolated.base / "data"
    machine = isolated.boot(volumes={"/root/data": data})
    machine.text("echo kept > /root/kept; ln -s kept link; chmod 750 kept; echo apart > /root/data/apart")
    isolated.containers.stop("one")
    copy = isolated.spec("two").disk
    shutil.copytree(isolated.spec("one").disk, copy, symlinks=True, dirs_exist_ok=True)
    assert sum(path.stat().st_size for path in copy.rglob("*") if path.is_file() and not path.is_symlink()) < 100_000
    machine = isolated.boot("two")
    assert machine.text("cat link; stat -c %a kept; ls data; hostname") == "kept\n750\nhost-two\n"
    assert (data / "apart").read_text() == "apart\n"


def test_volume_is_shared_between_machines(isolated: Cloud) -> None:
    shared = isolated.base / "fs"
    one = isolated.boot("one", volumes={"/root/autodl-fs": shared})
    two = isolated.boot("two", volumes={"/root/autodl-fs": shared, "/data/deep": isolated.base / "deep"})
    one.text("echo hello > autodl-fs/note")
    assert two.text("cat autodl-fs/note; touch /data/deep/er") == "hello\n"
    assert (isolated.base / "deep/er").exists()


@pytest.mark.parametrize("path", ["/", "data", "/root/../etc", "/usr/lib", "/proc/x", "/etc", "/run/x"])
def test_volume_over_the_system_is_refused(cloud: Cloud, path: str) -> None:
    with pytest.raises(ImageError, match="volume path"):
        cloud.boot(volumes={path: cloud.base / "v"})
    assert cloud.containers.running() == []


def test_volume_in_a_volume_is_refused(cloud: Cloud) -> None:
    with pytest.raises(ImageError, match="lies in another volume"):
        cloud.boot(volumes={"/root/a": cloud.base / "a", "/root/a/b": cloud.base / "b"})


def test_link_left_on_the_disk_does_not_lead_a_mount_out(cloud: Cloud, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    machine = cloud.boot()
    machine.text(f"ln -s {outside} /root/data; rm -rf /root/x")
    cloud.containers.stop("one")
    with pytest.raises(ImageError, match="cannot mount over data"):
        cloud.boot(volumes={"/root/data/sub": cloud.base / "v"})
    assert list(outside.iterdir()) == []


def test_memory_is_limited_to_what_was_rented(cloud: Cloud) -> None:
    machine = cloud.boot(memory_gb=1)
    done = machine.run("/root/miniconda3/bin/python3 -c 'bytearray(3 << 30)'")
    assert done.code == 1
    assert b"MemoryError" in done.err


def test_nvidia_smi_names_the_rented_gpus(isolated: Cloud) -> None:
    machine = isolated.boot(gpu_count=2)
    assert machine.text("nvidia-smi -L").splitlines() == [
        f"GPU {index}: NVIDIA GeForce RTX 4090 (UUID: GPU-00000000-0000-4000-8000-00000000000{index})"
        for index in (0, 1)
    ]
    query = "nvidia-smi --query-gpu=name,memory.total,memory.used,utilization.gpu,count,index,driver_version --format="
    assert machine.text(f"{query}csv") == (
        "name, memory.total [MiB], memory.used [MiB], utilization.gpu [%], count, index, driver_version\n"
        "NVIDIA GeForce RTX 4090, 24564 MiB, 1 MiB, 0 %, 2, 0, 550.54.14\n"
        "NVIDIA GeForce RTX 4090, 24564 MiB, 1 MiB, 0 %, 2, 1, 550.54.14\n"
    )
    machine.text("echo 97 > /run/gpu-utilization")
    assert machine.text(f"{query}csv,noheader,nounits -i 1") == (
        "NVIDIA GeForce RTX 4090, 24564, 12282, 97, 2, 1, 550.54.14\n"
    )
    assert machine.text("nvidia-smi").count("NVIDIA GeForce RTX 4090") == 2
    assert machine.run("nvidia-smi --query-gpu=nonsense --format=csv").code == 2


def test_host_that_refuses_is_named(cloud: Cloud) -> None:
    plan = sandbox.Plan(isolation="unshare", hostname="x", root=Path("/nonexistent"), binds=[], memory_gb=1)
    with pytest.raises(sandbox.SandboxError, match=r"unshare could not start x: .*/nonexistent"):
        sandbox.launch(plan, log=cloud.base / "log", python="")


def test_works_where_only_a_user_namespace_gives_root(cloud: Cloud) -> None:
    """As for a user without root: all mounts of the host are locked there."""
    script = (
        "import sys; from pathlib import Path; from fake_server import sandbox\n"
        "print(sandbox.find_isolation(Path(sys.argv[1])))"
    )
    where = Path(__file__).parents[3]
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", script, str(cloud.base)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=where, check=False)
    if "unshare" in done.stderr:
        pytest.skip(f"THIS HOST ALLOWS NO USER NAMESPACES, SO RUNNING WITHOUT ROOT WAS NOT TESTED: {done.stderr}")
    assert (done.stdout, done.stderr) == ("unshare\n", "")


def test_without_isolation_a_machine_has_a_home_and_dies_whole(cloud: Cloud) -> None:
    vars(cloud.containers)["isolation"] = "none"
    machine = cloud.boot(volumes={"/root/data": cloud.base / "data"})
    home = cloud.spec().disk / "root"
    assert machine.text("pwd; echo ~; nvidia-smi -L | wc -l; echo x > data/x") == f"{home}\n{home}\n2\n"
    assert (cloud.base / "data/x").exists()
    machine.text("(setsid sleep 98762 >/dev/null 2>&1 </dev/null &)")
    until(lambda: host_commands_with("98762"))
    cloud.containers.stop("one")
    assert host_commands_with("98762") == []


def test_network_is_the_hosts_loopback(cloud: Cloud) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert cloud.boot().run(f"exec 3<>/dev/tcp/127.0.0.1/{port}").code == 0
