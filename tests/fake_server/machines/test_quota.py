"""A machine's disk has an end: by its quota, and by a fault."""

import pytest

from fake_server.fault_rules import Rules, Target
from fake_server.trouble import Trouble
from tests.fake_server.machines.clients import Client, Cloud, until

MB = 2**20


def size_of(machine: Client, path: str) -> int:
    return int(machine.text(f"stat -c %s {path} 2>/dev/null || echo 0"))


def test_a_machine_cannot_keep_more_than_its_quota_and_recovers_by_removing_some(cloud: Cloud) -> None:
    machine = cloud.boot(disk_gb=40 * MB / 2**30)
    slowly = "for i in $(seq 400); do head -c 1000000 /dev/zero || exit 9; sleep 0.01; done > /root/big"
    done = machine.run(slowly)
    assert done.code != 0
    assert 40 * MB < size_of(machine, "/root/big") < 300 * MB
    refused = machine.run("echo more > /root/more")
    assert (refused.code, b"File too large" in refused.err) == (1, True)  # an error, which a program can handle
    assert machine.run("echo more | cat > /dev/null; rm /root/big").code == 0
    until(lambda: machine.run("echo more > /root/more").code == 0)
    assert machine.text("cat /root/more") == "more\n"


def test_the_quota_counts_data_disks_and_leaves_other_machines_alone(cloud: Cloud) -> None:
    data = cloud.base / "data"
    greedy = cloud.boot("greedy", disk_gb=20 * MB / 2**30, volumes={"/root/data": data})
    modest = cloud.boot("modest", disk_gb=20 * MB / 2**30)
    greedy.run("head -c 60000000 /dev/zero > /root/data/big")
    until(lambda: greedy.run("echo x > /root/data/x").code != 0)
    assert modest.text("echo fine > /root/fine; cat /root/fine") == "fine\n"


def test_a_full_disk_by_fault_stops_what_writes_already_and_ends_with_the_rule(cloud: Cloud) -> None:
    rules = Rules()
    trouble = Trouble(rules, Target(provider="autodl", id="one", name="gj-me-1"))
    machine = cloud.boot(trouble=trouble)
    machine.run("nohup sh -c 'while echo line; do sleep 0.01; done' > /root/log 2>/dev/null < /dev/null & echo")
    until(lambda: size_of(machine, "/root/log") > 0)
    rule = rules.arm("disk_full", machine="gj-me-*")
    stopped_at = size_of(machine, "/root/log")
    python = (
        '/root/miniconda3/bin/python3 -c \'import os; os.write(os.open("/root/f", os.O_CREAT | os.O_WRONLY), b"x")\''
    )
    done = machine.run(python)
    assert (done.code, b"File too large" in done.err) == (1, True)
    assert machine.run("cat > /root/up", b"y" * 100_000).code != 0
    assert size_of(machine, "/root/up") == 0
    assert size_of(machine, "/root/log") == stopped_at
    assert machine.text("echo still talking") == "still talking\n"
    rules.remove(rule)
    assert machine.text("echo x > /root/f; cat /root/f") == "x\n"


@pytest.mark.parametrize("seconds", [0.0, 0.8])
def test_a_machine_may_boot_with_a_full_disk(cloud: Cloud, seconds: float) -> None:
    rules = Rules()
    rules.arm("disk_full", seconds=seconds)
    machine = cloud.boot(trouble=Trouble(rules, Target(provider="matrixdc", id="one", name="one")))
    assert machine.run("echo x > /root/f").code != 0
    if seconds:
        until(lambda: machine.run("echo x > /root/f").code == 0)
