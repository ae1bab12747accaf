"""AutoDL's elastic deployment: how deployments and their containers live and end. No HTTP here.

Source: the provider's API document. A container goes creating → created → starting → oss_merged → running →
shutting_down → shutdown (or in_cache, when it may be reused); a deployment goes running → stopped.
"""

from functools import partial
from pathlib import Path

from fake_server.autodl_fleet import Fleet
from fake_server.autodl_types import BOOTING, Ban, Container, Deployment, Event, Kind, Status, Template
from fake_server.catalog import AUTODL_BASE_IMAGES, AUTODL_PRIVATE_IMAGES, GPUS, AutodlHost
from fake_server.ground import Ground
from fake_server.refusal import Reason, Refused
from fake_server.spec import ContainerSpec, Endpoint
from fake_server.truth import MachineTruth

_GRACE_S = 2.0
_UNKNOWN_DEPLOYMENT = "部署不存在"
_UNKNOWN_CONTAINER = "容器不存在"


class AutodlCloud:
    """All deployments of the one account. Every method is called with the world's lock held."""

    def __init__(self, ground: Ground) -> None:
        self.fleet = Fleet()
        self.deployments: dict[str, Deployment] = {}
        self.containers: dict[str, Container] = {}
        self.events: list[Event] = []
        self._ground = ground
        self._folder = ground.folder / "autodl"
        self._serial = 0

    def create(
        self,
        *,
        name: str,
        kind: Kind,
        replica_num: int,
        parallelism_num: int,
        reuse_container: bool,
        port_protocols: tuple[str, str],
        template: Template,
    ) -> Deployment:
        """Accept a deployment; its containers come when a host is free. Names need not be unique."""
        if template.image_uuid not in AUTODL_BASE_IMAGES and image_name(template.image_uuid) is None:
            raise Refused(Reason.NOT_FOUND, "私有镜像不存在")
        if not self.fleet.exists(template):
            raise Refused(Reason.NO_STOCK, "当前算力规格暂无库存")
        now = self._ground.timeline.now()
        deployment = Deployment(
            id=self._next_id(),
            uuid=self._ground.hex(15),
            name=name,
            kind=kind,
            replica_num=replica_num,
            parallelism_num=parallelism_num,
            reuse_container=reuse_container,
            port_protocols=port_protocols,
            template=template,
            version=self._ground.hex(8),
            created_at=now,
            updated_at=now,
        )
        self.deployments[deployment.uuid] = deployment
        self._ground.timeline.after(self._ground.timings.autodl_queued_s, partial(self._fill, deployment))
        return deployment

    def deployment(self, uuid: str) -> Deployment:
        """Return one deployment that was not deleted."""
        if uuid not in self.deployments:
            raise Refused(Reason.NOT_FOUND, _UNKNOWN_DEPLOYMENT)
        return self.deployments[uuid]

    def container(self, uuid: str) -> Container:
        """Return one container, ended or not, of a deployment that was not deleted."""
        if uuid not in self.containers:
            raise Refused(Reason.NOT_FOUND, _UNKNOWN_CONTAINER)
        return self.containers[uuid]

    def containers_of(self, deployment: Deployment) -> list[Container]:
        """Return its containers, oldest first."""
        return [each for each in self.containers.values() if each.deployment_uuid == deployment.uuid]

    def stop(self, deployment: Deployment) -> None:
        """Stop a deployment and its containers. Idempotent."""
        if deployment.status == "stopped":
            return
        now = self._ground.timeline.now()
        deployment.status = "stopped"
        deployment.stopped_at = deployment.updated_at = now
        for container in self.containers_of(deployment):
            self._shut_down(container, farewell=deployment.template.cmd_before_shutdown)

    def delete(self, deployment: Deployment) -> None:
        """Stop a deployment; it leaves the list once its last container is down. Idempotent."""
        deployment.delete_asked = True
        self.stop(deployment)
        self._forget_if_done(deployment)

    def scale(self, deployment: Deployment, replica_num: int) -> None:
        """Set a ReplicaSet's number of containers; surplus ones, newest first, are stopped."""
        if deployment.kind != "ReplicaSet" or replica_num < 0:
            raise Refused(Reason.BAD_REQUEST, "请求参数错误")
        deployment.replica_num = replica_num
        deployment.updated_at = self._ground.timeline.now()
        alive = [each for each in self.containers_of(deployment) if not each.ended and each.status != "shutting_down"]
        for container in alive[replica_num:]:
            self._shut_down(container, farewell=deployment.template.cmd_before_shutdown)
        self._fill(deployment)

    def stop_container(self, container: Container, *, decrease: bool, no_cache: bool, farewell: str) -> None:
        """Stop one container; its deployment replaces it unless told to shrink (ReplicaSet only)."""
        deployment = self.deployments[container.deployment_uuid]
        if container.ended or container.status == "shutting_down":
            return
        if decrease and deployment.kind == "ReplicaSet":
            deployment.replica_num = max(0, deployment.replica_num - 1)
        self._shut_down(container, farewell=farewell or deployment.template.cmd_before_shutdown)
        container.keep_for_reuse = deployment.reuse_container and not no_cache

    def ban(self, container: Container, *, minutes: int, comment: str) -> None:
        """Keep new containers off this container's host for a while."""
        timeline = self._ground.timeline
        expires_at = self.fleet.ban(container.host, minutes=minutes, comment=comment, now=timeline.now())
        timeline.at(expires_at, self.fill_all)

    def bans(self) -> list[Ban]:
        """Return the bans in force, latest first."""
        return self.fleet.bans(self._ground.timeline.now())

    def set_idle(self, gpu_name: str, region: str, idle: int) -> None:
        """Let other tenants take or leave GPUs; what waited for them starts."""
        self.fleet.set_idle(gpu_name, region, idle)
        self.fill_all()

    def fill_all(self) -> None:
        """Give free hosts to waiting deployments, the oldest first."""
        self._fill_all_but("")

    def summary(self) -> list[dict[str, str]]:
        """Return the deployments that exist, for the control room; a running one with no container is queued."""
        return [
            {"id": each.uuid, "name": each.name, "status": each.status, "type": each.kind}
            for each in self.deployments.values()
        ]

    def _fill_all_but(self, deployment_uuid: str) -> None:
        for deployment in list(self.deployments.values()):
            if deployment.uuid != deployment_uuid:
                self._fill(deployment)

    def _fill(self, deployment: Deployment) -> None:
        for _ in range(self._missing(deployment)):
            if not self._place(deployment):
                return

    def _missing(self, deployment: Deployment) -> int:
        if deployment.status != "running":
            return 0
        alive = sum(not each.ended for each in self.containers_of(deployment))
        match deployment.kind:
            case "ReplicaSet":
                return deployment.replica_num - alive
            case "Job":
                left = deployment.replica_num - deployment.finished_num - alive
                return min(deployment.parallelism_num - alive, left)
            case "Container":
                return 1 - alive if deployment.finished_num == 0 else 0

    def _place(self, deployment: Deployment) -> bool:
        """Make one container on a free host; say whether there was one."""
        template, now = deployment.template, self._ground.timeline.now()
        cached = self.fleet.pick_cached(template, now) if deployment.reuse_container else None
        host = cached.host if cached else self.fleet.pick(template, now)
        if host is None:
            return False
        container = self._new_container(deployment, host, disk=cached.disk if cached else "")
        if cached and cached.container_uuid in self.containers:
            self.containers[cached.container_uuid].status = "shutdown"
        self._reach(container, "creating")
        wait_s = 0.0 if cached else self._ground.timings.autodl_creating_s
        self._ground.timeline.after(wait_s, partial(self._created, container))
        return True

    def _new_container(self, deployment: Deployment, host: AutodlHost, *, disk: str) -> Container:
        now = self._ground.timeline.now()
        uuid = f"{deployment.uuid}-{host.machine_id}-{self._ground.hex(8)}"
        container = Container(
            id=self._next_id(),
            uuid=uuid,
            deployment_uuid=deployment.uuid,
            host=host,
            gpu_count=deployment.template.gpu_count,
            image_uuid=deployment.template.image_uuid,
            version=deployment.version,
            disk=disk or uuid,
            password=self._ground.password(),
            created_at=now,
            updated_at=now,
        )
        self.fleet.take(host, container.gpu_count)
        self.containers[uuid] = container
        self._ground.truth.made(
            MachineTruth(
                provider="autodl",
                id=uuid,
                name=deployment.name,
                gpu=host.gpu_name,
                gpu_count=container.gpu_count,
                region=host.data_center,
                price_cny_per_h=container.price_milli_cny_per_h / 1000,
                made_at=now,
            )
        )
        return container

    def _created(self, container: Container) -> None:
        if container.status == "creating":
            self._reach(container, "created")
            self._ground.timeline.after(self._ground.timings.autodl_created_s, partial(self._start, container))

    def _start(self, container: Container) -> None:
        if container.status != "created":
            return
        self._reach(container, "starting", "oss_merged")
        self._ground.timeline.after(self._ground.timings.autodl_starting_s, partial(self._boot, container))

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
        deployment = self.deployments[container.deployment_uuid]
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
                "AutoDLDeploymentUUID": deployment.uuid,
                "AutoDLDataCenter": host.data_center,
            },
            conda="/root/miniconda3",
            password=container.password,
            cmd=expanded_once(deployment.template.cmd),
        )

    def _running(self, container: Container, endpoint: Endpoint) -> None:
        now = self._ground.timeline.now()
        container.endpoint = endpoint
        container.started_at = now
        self._ground.truth.powered_on(container.uuid, now)
        self._reach(container, "running")
        if container.cmd_ended:
            self._cmd_ended(container)

    def _failed(self, container: Container) -> None:
        if container.status == "oss_merged":
            self._ended(container, "failed")

    def _cmd_ended(self, container: Container) -> None:
        container.cmd_ended = True
        if container.status == "running":
            self._shut_down(container, farewell="")

    def _shut_down(self, container: Container, *, farewell: str) -> None:
        if container.ended or container.status == "shutting_down":
            return
        deployment = self.deployments[container.deployment_uuid]
        container.keep_for_reuse = deployment.reuse_container
        self._ground.on_cmd_exit.pop(container.uuid, None)
        farewell = "" if container.status in BOOTING else farewell
        self._reach(container, "shutting_down")
        down_at = self._ground.timeline.now() + self._ground.timings.autodl_shutting_down_s
        down = partial(self._ended, container, "shutdown")
        self._ground.halt(
            container.uuid,
            farewell=farewell,
            grace_s=_GRACE_S,
            then=lambda: self._ground.timeline.at(down_at, down),
        )

    def _ended(self, container: Container, status: Status) -> None:
        now = self._ground.timeline.now()
        self._reach(container, status)
        container.stopped_at = now
        self._ground.truth.gone(container.uuid, now)
        self.fleet.free(container.host, container.gpu_count)
        if status == "shutdown" and container.keep_for_reuse and container.started_at is not None:
            container.status = "in_cache"
            self.fleet.keep(container)
        else:
            self._ground.drop_folders(container.uuid, self._disk(container), self._data_disk(container))
        self._settle(container)
        self._fill_all_but(container.deployment_uuid)

    def _settle(self, container: Container) -> None:
        """Count an ended container, and end, delete or refill its deployment."""
        deployment = self.deployments[container.deployment_uuid]
        by_itself = container.cmd_ended or not self._ground.guesses.job_replaces_stopped
        if container.started_at is not None and (deployment.kind != "Job" or by_itself):
            deployment.finished_num += 1
        timeline, timings = self._ground.timeline, self._ground.timings
        if self._done(deployment):
            timeline.after(timings.autodl_settle_s, partial(self.stop, deployment))
        else:
            timeline.after(timings.autodl_replace_s, partial(self._fill, deployment))
        self._forget_if_done(deployment)

    def _done(self, deployment: Deployment) -> bool:
        if deployment.kind == "Job":
            return deployment.finished_num >= deployment.replica_num
        return deployment.kind == "Container" and deployment.finished_num > 0

    def _forget_if_done(self, deployment: Deployment) -> None:
        mine = self.containers_of(deployment)
        if deployment.delete_asked and all(each.ended for each in mine):
            self.deployments.pop(deployment.uuid, None)
            gone = {each.uuid for each in mine}
            self.containers = {uuid: each for uuid, each in self.containers.items() if uuid not in gone}
            self.events = [event for event in self.events if event.container_uuid not in gone]

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

    def _next_id(self) -> int:
        self._serial += 1
        return self._serial


def image_name(uuid: str) -> str | None:
    """Return the name of an AutoDL image, None for an unknown one."""
    private = {image.uuid: image.name for image in AUTODL_PRIVATE_IMAGES}
    return private.get(uuid) or AUTODL_BASE_IMAGES.get(uuid)


def expanded_once(cmd: str) -> str:
    """Return what the host runs for a deployment's cmd.

    Seen live: the text is put, unquoted, between the double quotes of an outer shell command, so `$` is expanded by
    that outer shell and the text's own double quotes end the outer ones; plain words and pipes pass unchanged.
    """
    return f'exec bash -c "{cmd}"'
