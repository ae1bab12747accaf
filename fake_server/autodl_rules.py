"""AutoDL's elastic deployment: what deployments want, and how they get and lose their containers. No HTTP here.

Source: the provider's API document. A container goes creating → created → starting → oss_merged → running →
shutting_down → shutdown (or in_cache, when it may be reused); a deployment goes running → stopped.
"""

from collections.abc import Sequence
from functools import partial

from fake_server.autodl_fleet import Fleet
from fake_server.autodl_life import Lives
from fake_server.autodl_packages import Packages
from fake_server.autodl_types import Ban, Container, Deployment, Event, Kind, Template
from fake_server.catalog import AUTODL_BASE_IMAGES, AUTODL_PRIVATE_IMAGES, PrepaidHours
from fake_server.fault_rules import Target
from fake_server.ground import Ground
from fake_server.refusal import Reason, Refused


class AutodlCloud:
    """All deployments of the one account. Every method is called with the world's lock held."""

    def __init__(self, ground: Ground) -> None:
        self.fleet = Fleet()
        self.guesses = ground.guesses
        self.deployments: dict[str, Deployment] = {}
        self.containers: dict[str, Container] = {}
        self._ground = ground
        self._lives = Lives(ground, self.fleet, on_end=self._settle)
        self._serial = 0

    @property
    def events(self) -> list[Event]:
        """What happened to the containers, oldest first."""
        return self._lives.events

    def create(
        self,
        *,
        name: str,
        kind: Kind,
        replica_num: int,
        parallelism_num: int,
        reuse_container: bool,
        port_protocols: tuple[str, str],
        deprecated_port_protocol: str = "http",
        template: Template,
    ) -> Deployment:
        """Accept a deployment; its containers come when a host is free. Names need not be unique."""
        if image_name(template.image_uuid) is None:
            raise Refused(Reason.NOT_FOUND, "私有镜像不存在")
        if not self.fleet.exists(template):
            raise Refused(Reason.NO_STOCK, "当前算力规格暂无库存")
        now = self._ground.timeline.now()
        if not self.guesses.autodl_queues_without_stock and self.fleet.pick(template, now) is None:
            raise Refused(Reason.NO_STOCK, "当前算力规格暂无库存")
        deployment = Deployment(
            id=self._next_id(),
            uuid=self._ground.hex(15),
            name=name,
            kind=kind,
            replica_num=replica_num,
            parallelism_num=parallelism_num,
            reuse_container=reuse_container,
            port_protocols=port_protocols,
            deprecated_port_protocol=deprecated_port_protocol,
            template=template,
            version=self._ground.hex(8),
            created_at=now,
            updated_at=now,
        )
        self.deployments[deployment.uuid] = deployment
        self._queue("autodl_queued", deployment)
        return deployment

    def deployment(self, uuid: str) -> Deployment:
        """Return one deployment that was not deleted."""
        if uuid not in self.deployments:
            raise Refused(Reason.NOT_FOUND, "部署不存在")
        return self.deployments[uuid]

    def container(self, uuid: str) -> Container:
        """Return one container, ended or not, of a deployment that was not deleted."""
        if uuid not in self.containers:
            raise Refused(Reason.NOT_FOUND, "容器不存在")
        return self.containers[uuid]

    def containers_of(self, deployment: Deployment) -> list[Container]:
        """Return its containers, oldest first."""
        return [each for each in self.containers.values() if each.deployment is deployment]

    def stop(self, deployment: Deployment) -> None:
        """Stop a deployment and its containers. Idempotent."""
        if deployment.status == "stopped":
            return
        deployment.status = "stopped"
        deployment.stopped_at = deployment.updated_at = self._ground.timeline.now()
        for container in self.containers_of(deployment):
            self._shut_down(container)

    def delete(self, deployment: Deployment) -> None:
        """Stop a deployment; it leaves the list once its last container is down. Idempotent."""
        deployment.delete_asked = True
        self.stop(deployment)
        self._forget_if_done(deployment)

    def scale(self, deployment: Deployment, replica_num: int) -> None:
        """Set a ReplicaSet's number of containers; surplus ones, newest first, are stopped."""
        if deployment.kind != "ReplicaSet":
            raise Refused(Reason.BAD_REQUEST, "请求参数错误")
        deployment.replica_num = replica_num
        deployment.updated_at = self._ground.timeline.now()
        alive = [each for each in self.containers_of(deployment) if not each.ended and each.status != "shutting_down"]
        for container in alive[replica_num:]:
            self._shut_down(container)
        self._fill(deployment)

    def stop_container(self, container: Container, *, decrease: bool, no_cache: bool, farewell: str) -> None:
        """Stop one container; its deployment replaces it unless told to shrink (ReplicaSet only). Idempotent."""
        deployment = container.deployment
        if container.ended or container.status == "shutting_down":
            return
        if decrease and deployment.kind == "ReplicaSet":
            deployment.replica_num = max(0, deployment.replica_num - 1)
        self._lives.shut_down(
            container,
            farewell=farewell or deployment.template.cmd_before_shutdown,
            keep_for_reuse=deployment.reuse_container and not no_cache,
        )

    def ban(self, container: Container, *, minutes: int, comment: str) -> None:
        """Keep new containers off this container's host for a while."""
        timeline = self._ground.timeline
        expires_at = self.fleet.ban(container.host, minutes=minutes, comment=comment, now=timeline.now())
        timeline.at(expires_at, self._fill_all)

    def bans(self) -> list[Ban]:
        """Return the bans in force, latest first."""
        return self.fleet.bans(self._ground.timeline.now())

    def prepaid(self, gpus: Sequence[str]) -> list[tuple[PrepaidHours, int]]:
        """Return the packages for these GPUs with the seconds left of each."""
        return self.packages.overview(gpus, self._ground.timeline.now())

    def set_idle(self, gpu_name: str, region: str, idle: int) -> None:
        """Let other tenants take or leave GPUs; what waited for them starts."""
        self.fleet.set_idle(gpu_name, region, idle)
        self._fill_all()

    @property
    def packages(self) -> Packages:
        """The account's prepaid GPU hours."""
        return self._lives.packages

    @property
    def serial(self) -> int:
        """The number last given to a deployment or container."""
        return self._serial

    def restore(
        self, deployments: dict[str, Deployment], containers: dict[str, Container], events: list[Event], serial: int
    ) -> None:
        """Be again what a fake was that ended, and go on from there."""
        self.deployments, self.containers, self._serial = deployments, containers, serial
        self._lives.events = events
        for container in containers.values():
            self._lives.resume(container)
        for deployment in list(deployments.values()):
            self._resume(deployment)
        for ban in self.bans():
            self._ground.timeline.at(ban.expires_at, self._fill_all)

    def _resume(self, deployment: Deployment) -> None:
        if deployment.queued:
            self._queue("autodl_queued", deployment)
        elif self._done(deployment):
            self._ground.stages.after("autodl_settle", _target(deployment), partial(self.stop, deployment))
        else:
            self._ground.timeline.after(0.0, partial(self._fill, deployment))
        self._forget_if_done(deployment)

    def refill(self) -> None:
        """Look again for what deployments wait for."""
        self._fill_all()

    def listed(self, each: Deployment | Container) -> bool:
        """Say whether lists know of it yet."""
        return self._ground.listed(each.created_at)

    def summary(self) -> list[dict[str, str]]:
        """Return the deployments that exist, for the control room; a running one with no container is queued."""
        return [
            {"id": each.uuid, "name": each.name, "status": each.status, "type": each.kind}
            for each in self.deployments.values()
        ]

    def _shut_down(self, container: Container) -> None:
        deployment = container.deployment
        self._lives.shut_down(
            container,
            farewell=deployment.template.cmd_before_shutdown,
            keep_for_reuse=deployment.reuse_container,
        )

    def _fill_all(self, *, but: Deployment | None = None) -> None:
        """Give free hosts to waiting deployments, the oldest first."""
        for deployment in list(self.deployments.values()):
            if deployment is not but:
                self._fill(deployment)

    def _queue(self, stage: str, deployment: Deployment) -> None:
        """Let the deployment have its missing containers when the stage is over."""

        def over() -> None:
            deployment.queued = False
            self._fill(deployment)

        deployment.queued = True
        self._ground.stages.after(stage, _target(deployment), over)

    def _fill(self, deployment: Deployment) -> None:
        for _ in range(self._missing(deployment)):
            if not self._place(deployment):
                return

    def _missing(self, deployment: Deployment) -> int:
        if deployment.status != "running" or deployment.queued:
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
        if self._ground.stages.struck("never_scheduled", _target(deployment), self._fill_all):
            return False
        template, now = deployment.template, self._ground.timeline.now()
        cached = self.fleet.pick_cached(template, now) if deployment.reuse_container else None
        host = cached.host if cached else self.fleet.pick(template, now)
        if host is None:
            return False
        uuid = f"{deployment.uuid}-{host.machine_id}-{self._ground.hex(8)}"
        container = Container(
            id=self._next_id(),
            uuid=uuid,
            deployment=deployment,
            host=host,
            disk=cached.disk if cached else uuid,
            password=self._ground.password(),
            created_at=now,
            updated_at=now,
        )
        self.containers[uuid] = container
        if cached and cached.container_uuid in self.containers:
            self.containers[cached.container_uuid].status = "shutdown"
        self._lives.begin(container, reused=cached is not None)
        return True

    def _settle(self, container: Container) -> None:
        """Count an ended container; end, delete or refill its deployment; give its GPUs to who waits for them."""
        deployment = container.deployment
        by_itself = container.cmd_ended or not self._ground.guesses.job_replaces_stopped
        if container.started_at is not None and (deployment.kind != "Job" or by_itself):
            deployment.finished_num += 1
        if self._done(deployment):
            self._ground.stages.after("autodl_settle", _target(deployment), partial(self.stop, deployment))
        else:
            self._queue("autodl_replace", deployment)
        self._forget_if_done(deployment)
        self._fill_all(but=deployment)

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
            self._lives.forget(gone)

    def _next_id(self) -> int:
        self._serial += 1
        return self._serial


def _target(deployment: Deployment) -> Target:
    return Target(provider="autodl", id=deployment.uuid, name=deployment.name)


def image_name(uuid: str) -> str | None:
    """Return the name of an AutoDL image, None for an unknown one."""
    private = {image.uuid: image.name for image in AUTODL_PRIVATE_IMAGES}
    return private.get(uuid) or AUTODL_BASE_IMAGES.get(uuid)
