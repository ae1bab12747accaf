"""The life of one AutoDL container, from its place on a host to its end. No HTTP here."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from fake_server.autodl_fleet import Fleet
from fake_server.autodl_packages import Packages
from fake_server.autodl_types import BOOTING, Container, Event, Status
from fake_server.catalog import AUTODL_PREPAID, AUTODL_USER_ID, GPUS
from fake_server.fault_rules import Target
from fake_server.ground import Ground
from fake_server.spec import ContainerSpec, Endpoint
from fake_server.truth import MachineTruth

_GRACE_S = 2.0


class Lives:
    """Carries containers through their statuses and keeps the events. Called with the world's lock held."""

    def __init__(self, ground: Ground, fleet: Fleet, *, on_end: Callable[[Container], None]) -> None:
        self.events: list[Event] = []
        self.packages = Packages(AUTODL_PREPAID, now=ground.timeline.now(), pay=ground.truth.paid_by_package)
        self._ground = ground
        self._fleet = fleet
        self._on_end = on_end
        self._folder = ground.folder / "autodl"

    def begin(self, container: Container, *, reused: bool) -> None:
        """Occupy the host and set out for running; a reused container skips the creating."""
        self._fleet.take(container.host, container.gpu_count)
        self._ground.truth.made(_truth(container))
        self._reach(container, "creating")
        if reused:
            self._ground.timeline.after(0.0, partial(self._created, container))
        else:
            self._ground.stages.after("autodl_creating", _target(container), partial(self._created, container))

    def shut_down(self, container: Container, *, farewell: str, keep_for_reuse: bool) -> None:
        """Stop a container, a running one after its farewell command. Idempotent."""
        if container.ended or container.status == "shutting_down":
            return
        container.keep_for_reuse = keep_for_reuse
        self._ground.on_cmd_exit.pop(container.uuid, None)
        farewell = "" if container.status in BOOTING else farewell
        self._reach(container, "shutting_down")
        now = self._ground.timeline.now()
        down = partial(self._ended, container, "shutdown")
        self._ground.halt(
            container.uuid,
            farewell=farewell,
            grace_s=_GRACE_S,
            then=lambda: self._ground.stages.after("autodl_shutting_down", _target(container), down, since=now),
        )

    def resume(self, container: Container) -> None:
        """Go on where the fake ended: a running container boots again at its old address, as after its host's reboot.

        Its cmd then runs anew.
        """
        steps: dict[Status, tuple[str, Callable[[], None]]] = {
            "creating": ("autodl_creating", partial(self._created, container)),
            "created": ("autodl_created", partial(self._start, container)),
            "oss_merged": ("autodl_starting", partial(self._boot, container)),
            "shutting_down": ("autodl_shutting_down", partial(self._ended, container, "shutdown")),
        }
        if container.status == "running":
            self._reboot(container)
        elif step := steps.get(container.status):
            self._ground.stages.after(step[0], _target(container), step[1], since=container.updated_at)

    def _reboot(self, container: Container) -> None:
        def ready(endpoint: Endpoint) -> None:
            container.endpoint = endpoint
            self._ground.runs(container.uuid, die=partial(self._die, container))

        self._draw(container, None)
        if container.cmd_ended:
            self._cmd_ended(container)
            return
        self._ground.on_cmd_exit[container.uuid] = partial(self._cmd_ended, container)
        self._ground.boot(
            self._spec(container),
            image=None,
            wanted=lambda: container.status == "running",
            ready=ready,
            failed=partial(self._die, container),
        )

    def forget(self, uuids: set[str]) -> None:
        """Drop the events of containers that nobody can ask for any more."""
        self.events = [event for event in self.events if event.container_uuid not in uuids]

    def _created(self, container: Container) -> None:
        if container.status == "creating":
            self._reach(container, "created")
            self._ground.stages.after("autodl_created", _target(container), partial(self._start, container))

    def _start(self, container: Container) -> None:
        if container.status != "created":
            return
        self._reach(container, "starting", "oss_merged")
        self._ground.stages.after("autodl_starting", _target(container), partial(self._boot, container))

    def _boot(self, container: Container) -> None:
        if container.status != "oss_merged":
            return
        self._ground.on_cmd_exit[container.uuid] = partial(self._cmd_ended, container)
        self._ground.boot(
            self._spec(container),
            image=None,
            wanted=lambda: container.status == "oss_merged",
            ready=partial(self._running, container),
            failed=partial(self._failed, container),
        )

    def _spec(self, container: Container) -> ContainerSpec:
        gpu, host = GPUS[container.host.gpu_name], container.host
        return ContainerSpec(
            name=container.uuid,
            hostname=f"autodl-container-{container.uuid[-8:]}",
            disk=self._disk(container),
            volumes={
                "/root/autodl-tmp": self._data_disk(container),
                "/root/autodl-fs": self._folder / "fs" / host.data_center,
            },
            gpu_name=gpu.smi_name,
            gpu_count=container.gpu_count,
            gpu_memory_mb=gpu.memory_mb,
            cpus=container.cpus,
            memory_gb=container.memory_gb,
            env={
                "AutoDLContainerUUID": container.uuid,
                "AutoDLDeploymentUUID": container.deployment.uuid,
                "AutoDLDataCenter": host.data_center,
            },
            conda="/root/miniconda3",
            password=container.password,
            cmd=expanded_once(container.deployment.template.cmd),
            port=container.endpoint.port if container.endpoint else 0,
        )

    def _running(self, container: Container, endpoint: Endpoint) -> None:
        now = self._ground.timeline.now()
        container.endpoint = endpoint
        container.started_at = now
        self._ground.truth.powered_on(container.uuid, now)
        self._reach(container, "running")
        self._draw(container, now)
        self._ground.runs(container.uuid, die=partial(self._die, container))
        if container.cmd_ended:
            self._cmd_ended(container)

    def _draw(self, container: Container, now: float | None) -> None:
        if self._ground.guesses.autodl_packages_pay:
            self.packages.begin(
                container.uuid,
                gpu=container.host.gpu_name,
                data_center=container.host.data_center,
                gpu_count=container.gpu_count,
                now=now,
            )

    def _failed(self, container: Container) -> None:
        if container.status == "oss_merged":
            self._ended(container, "failed")

    def _die(self, container: Container) -> None:
        self._ground.on_cmd_exit.pop(container.uuid, None)

        def dead() -> None:
            if container.status == "running":
                self._ended(container, "failed")

        self._ground.halt(container.uuid, then=dead)

    def _cmd_ended(self, container: Container) -> None:
        container.cmd_ended = True
        if container.status == "running":
            self.shut_down(container, farewell="", keep_for_reuse=container.deployment.reuse_container)

    def _ended(self, container: Container, status: Status) -> None:
        now = self._ground.timeline.now()
        self._reach(container, status)
        container.stopped_at = now
        self._ground.truth.gone(container.uuid, now)
        self.packages.end(container.uuid, now)
        self._fleet.free(container.host, container.gpu_count)
        reusable = status == "shutdown" and container.keep_for_reuse and container.started_at is not None
        if reusable:
            container.status = "in_cache"
            self._fleet.keep(container)
        self._ground.weigh(container.uuid, self._disk(container), self._data_disk(container), remove=not reusable)
        self._on_end(container)

    def _reach(self, container: Container, *statuses: Status) -> None:
        """Enter one status, or several at the very same moment."""
        now = self._ground.timeline.now()
        container.status = statuses[-1]
        container.updated_at = now
        self.events.extend(Event(container_uuid=container.uuid, status=status, at=now) for status in statuses)

    def _disk(self, container: Container) -> Path:
        return self._folder / "disks" / container.disk

    def _data_disk(self, container: Container) -> Path:
        return self._folder / "tmp" / container.disk


def expanded_once(cmd: str) -> str:
    """Return what the host runs for a deployment's cmd.

    Seen live: the text is put, unquoted, between the double quotes of an outer shell command, so `$` is expanded by
    that outer shell and the text's own double quotes end the outer ones; plain words and pipes pass unchanged.
    """
    return f'exec bash -c "{cmd}"'


def _target(container: Container) -> Target:
    return Target(provider="autodl", id=container.uuid, name=container.deployment.name)


def _truth(container: Container) -> MachineTruth:
    return MachineTruth(
        provider="autodl",
        id=container.uuid,
        name=container.deployment.name,
        owner=AUTODL_USER_ID,
        gpu=container.host.gpu_name,
        gpu_count=container.gpu_count,
        region=container.host.data_center,
        price_cny_per_h=container.price_milli_cny_per_h / 1000,
        made_at=container.created_at,
    )
