"""MatrixDC: how instances live, sleep, are saved and end. No HTTP here.

Source: the provider's API document for Creating and Running; the other statuses are its console's labels.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import UUID

from fake_server.catalog import (
    GPUS,
    MATRIXDC_COUPONS,
    MATRIXDC_GPUS,
    MATRIXDC_PUBLIC_PROJECT,
    MATRIXDC_REGION,
    MATRIXDC_SKUS,
    Sku,
)
from fake_server.clock import Action
from fake_server.fault_rules import Target
from fake_server.ground import Ground
from fake_server.matrixdc_money import periods
from fake_server.matrixdc_types import Instance, Order, Status, Volume
from fake_server.refusal import Reason, Refused
from fake_server.spec import ContainerSpec, Endpoint
from fake_server.truth import MachineTruth

_IMAGE_NAME = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*")
_IMAGE_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class MatrixdcCloud:
    """All instances and saved images of the one account. Every method is called with the world's lock held."""

    def __init__(self, ground: Ground, *, namespace: str) -> None:
        self.namespace = namespace
        self.guesses = ground.guesses
        self.instances: dict[str, Instance] = {}
        self.images: dict[str, Path] = {}
        self.idle = dict(MATRIXDC_GPUS)
        self.coupons = dict(MATRIXDC_COUPONS)
        self._ground = ground
        self._folder = ground.folder / "matrixdc"

    def sku(self, sku_id: str) -> Sku:
        """Return a machine size by its id."""
        for sku in MATRIXDC_SKUS:
            if sku.id == sku_id:
                return sku
        raise Refused(Reason.BAD_REQUEST, f"GPU规格不存在: {sku_id}")

    def create(self, order: Order) -> Instance:
        """Make an instance, at once counted against the stock. Display names need not be unique."""
        self._image_folder(order.image)
        coupon_cny = self._coupon(order.coupon_id)
        now = self._ground.timeline.now()
        name = f"instance-{self._ground.hex(8)}"
        instance = Instance(
            name=name,
            uid=self._uuid(),
            order=order,
            order_id=self._uuid(),
            volumes=tuple(
                Volume(path=path, size_gb=size_gb, pvc=f"volume-{self._ground.hex(8)}")
                for path, size_gb in order.volumes
            ),
            pod=f"{name}-{self._ground.hex(5)}",
            node=f"gpu-{order.sku.gpu.lower()}-{self._ground.random.randint(1, 9):02d}",
            ip=f"172.31.{self._ground.random.randint(0, 255)}.{self._ground.random.randint(2, 254)}",
            token=self._ground.hex(32),
            created_at=now,
        )
        self._take_gpus(instance)
        self.coupons.update({order.coupon_id: 0.0} if order.coupon_id else {})
        self.instances[name] = instance
        self._ground.truth.made(_truth(instance, owner=self.namespace, coupon_cny=coupon_cny))
        self._ground.stages.after("matrixdc_creating", _target(instance), partial(self._boot, instance))
        if order.prepaid_s:
            instance.stops_at = now + order.prepaid_s
            self._ground.timeline.at(instance.stops_at, partial(self._expire, instance))
        return instance

    def instance(self, name: str) -> Instance:
        """Return one instance."""
        if name not in self.instances:
            raise Refused(Reason.NOT_FOUND, f"实例不存在: {name}")
        return self.instances[name]

    def listed(self) -> list[Instance]:
        """Return the instances that lists know of yet, newest first."""
        return [each for each in reversed(self.instances.values()) if self._ground.listed(each.created_at)]

    def power_off(self, instance: Instance, *, grace_s: float, snapshot: tuple[str, str] | None) -> None:
        """Stop a running instance; its disk stays. `snapshot` is the name and tag to save the system disk under."""
        if snapshot is not None:
            _check_image_name(*snapshot)
        if instance.status != "Running":
            raise Refused(Reason.CONFLICT, f"实例状态为 {instance.status}, 不能关机")
        instance.saving = snapshot
        self._reach(instance, "Shutting Down")
        now = self._ground.timeline.now()
        down = partial(self._stopped, instance, snapshot)
        self._ground.halt(
            instance.name,
            grace_s=grace_s,
            then=lambda: self._ground.stages.after("matrixdc_shutting_down", _target(instance), down, since=now),
        )

    def power_on(self, instance: Instance) -> None:
        """Start a powered-off instance on the same disk, with another password and port."""
        if instance.status != "Shutdown":
            raise Refused(Reason.CONFLICT, f"实例状态为 {instance.status}, 不能开机")
        if self._is_over(instance):
            raise Refused(Reason.CONFLICT, "实例已到期, 请先续费")
        self._take_gpus(instance)
        self._reach(instance, "Starting")
        self._ground.stages.after("matrixdc_starting", _target(instance), partial(self._boot, instance))

    def renew(self, instance: Instance, cost_time: str) -> None:
        """Lengthen what was paid ahead; "+3D" adds three days. The documents say how it is written, not where."""
        order = instance.order
        if not cost_time.startswith("+") or instance.stops_at is None:
            raise Refused(Reason.BAD_REQUEST, f"CostTime 不合法: {cost_time}")
        count, seconds = periods(order.sku.selling_type, cost_time[1:])
        instance.order = replace(order, cost_time=cost_time)
        instance.stops_at += seconds
        self._ground.truth.machines[instance.name].prepaid_cny += count * order.sku.price_cny
        self._ground.timeline.at(instance.stops_at, partial(self._expire, instance))

    def delete(self, instance: Instance) -> None:
        """Remove an instance and its disks, whatever it is doing. Idempotent until it is gone."""
        if instance.status == "Deleting":
            return
        self._reach(instance, "Deleting")
        now = self._ground.timeline.now()
        gone = partial(self._gone, instance)
        self._ground.halt(
            instance.name,
            then=lambda: self._ground.stages.after("matrixdc_deleting", _target(instance), gone, since=now),
        )

    def restore(
        self, instances: dict[str, Instance], images: dict[str, Path], idle: dict[str, int], coupons: dict[str, float]
    ) -> None:
        """Be again what a fake was that ended, and go on from there."""
        self.instances, self.images = instances, images
        self.idle.update(idle)
        self.coupons.update(coupons)
        for instance in list(instances.values()):
            self._resume(instance)

    def _resume(self, instance: Instance) -> None:
        """Go on where the fake ended: a running instance boots again at its old address, as after its host's reboot."""
        began_at = instance.created_at if instance.updated_at is None else instance.updated_at
        match instance.status:
            case "Running":
                self._reboot(instance)
            case "Creating":
                self._after("matrixdc_creating", instance, partial(self._boot, instance), began_at)
            case "Starting":
                self._after("matrixdc_starting", instance, partial(self._boot, instance), began_at)
            case "Shutting Down":
                down = partial(self._stopped, instance, instance.saving)
                self._after("matrixdc_shutting_down", instance, down, began_at)
            case "Shutdown":
                self._count_days_off(instance)
            case "Deleting":
                self._after("matrixdc_deleting", instance, partial(self._gone, instance), began_at)
        if instance.stops_at is not None:
            self._ground.timeline.at(instance.stops_at, partial(self._expire, instance))

    def _after(self, stage: str, instance: Instance, action: Action, since: float) -> None:
        self._ground.stages.after(stage, _target(instance), action, since=since)

    def _reboot(self, instance: Instance) -> None:
        def ready(endpoint: Endpoint) -> None:
            instance.endpoint = endpoint
            self._ground.runs(instance.name, die=partial(self._die, instance))

        self._ground.boot(
            self._spec(instance),
            image=self._image_folder(instance.order.image),
            wanted=lambda: instance.status == "Running",
            ready=ready,
            failed=partial(self._die, instance),
        )

    def _boot(self, instance: Instance) -> None:
        if instance.status not in {"Creating", "Starting"}:
            return
        status = instance.status
        instance.password = self._ground.password()
        self._ground.boot(
            self._spec(instance),
            image=self._image_folder(instance.order.image),
            wanted=lambda: instance.status == status,
            ready=partial(self._running, instance),
            failed=partial(self._failed, instance, status),
        )

    def _spec(self, instance: Instance) -> ContainerSpec:
        sku = instance.order.sku
        return ContainerSpec(
            name=instance.name,
            hostname=instance.pod,
            disk=self._disk(instance),
            volumes={volume.path: self._folder / "volumes" / volume.pvc for volume in instance.volumes},
            gpu_name=GPUS[sku.gpu].smi_name,
            gpu_count=sku.gpu_count,
            gpu_memory_mb=GPUS[sku.gpu].memory_mb,
            cpus=sku.cpus,
            memory_gb=sku.memory_gb,
            env={},
            conda="/opt/miniconda3",
            password=instance.password,
            port=instance.endpoint.port if instance.endpoint else 0,
        )

    def _running(self, instance: Instance, endpoint: Endpoint) -> None:
        instance.endpoint = endpoint
        self._ground.truth.powered_on(instance.name, self._ground.timeline.now())
        self._reach(instance, "Running")
        self._ground.runs(instance.name, die=partial(self._die, instance))

    def _failed(self, instance: Instance, booting: Status) -> None:
        if instance.status == booting:
            self._free_gpus(instance)
            self._reach(instance, "Failed")

    def _die(self, instance: Instance) -> None:
        def dead() -> None:
            if instance.status == "Running":
                self._unpower(instance)
                self._reach(instance, "Failed")

        self._ground.halt(instance.name, then=dead)

    def _stopped(self, instance: Instance, snapshot: tuple[str, str] | None) -> None:
        if instance.status != "Shutting Down":
            return
        if snapshot is None:
            self._shut_down(instance)
            return
        if self._ground.rules.happens("snapshot_fails", _target(instance)):
            self._ground.stages.after("matrixdc_snapshot", _target(instance), partial(self._shut_down, instance))
            return
        now = self._ground.timeline.now()
        target = self._folder / "images" / self._ground.hex(12)
        saved = partial(self._saved, instance, snapshot, target)
        self._ground.copy_disk(
            instance.name,
            self._disk(instance),
            target,
            then=lambda: self._ground.stages.after("matrixdc_snapshot", _target(instance), saved, since=now),
            failed=partial(self._shut_down, instance),
        )

    def _saved(self, instance: Instance, snapshot: tuple[str, str], folder: Path) -> None:
        """Publish the saved image, over an older one of the same name and tag."""
        image = f"{MATRIXDC_REGION.harbor_addr}/{self.namespace}/{snapshot[0]}:{snapshot[1]}"
        self.images[image] = folder
        self._shut_down(instance)

    def _shut_down(self, instance: Instance) -> None:
        if instance.status == "Shutting Down":
            self._unpower(instance)
            self._reach(instance, "Shutdown")
            self._count_days_off(instance)

    def _count_days_off(self, instance: Instance) -> None:
        off_at = self._ground.timeline.now() if instance.updated_at is None else instance.updated_at
        self._after("matrixdc_wipe", instance, partial(self._wipe, instance, off_at), off_at)

    def _wipe(self, instance: Instance, off_at: float) -> None:
        """Take the data of an instance that has been off all the time (seen on the console: 15 days)."""
        if instance.status != "Shutdown" or instance.updated_at != off_at:
            return
        if self.guesses.matrixdc_wipe == "instance":
            self.delete(instance)
        else:
            self._ground.weigh(instance.name, self._disk(instance), *self._volumes(instance), remove=True)

    def _volumes(self, instance: Instance) -> list[Path]:
        return [self._folder / "volumes" / volume.pvc for volume in instance.volumes]

    def _coupon(self, coupon_id: str) -> float:
        """Return what is left of a coupon; an instance takes all of it and gives the rest back at its end."""
        if not coupon_id:
            return 0.0
        if coupon_id not in self.coupons:
            raise Refused(Reason.BAD_REQUEST, f"优惠券不存在: {coupon_id}")
        if self.coupons[coupon_id] <= 0:
            raise Refused(Reason.BAD_REQUEST, f"优惠券已用完或使用中: {coupon_id}")
        return self.coupons[coupon_id]

    def _gone(self, instance: Instance) -> None:
        self._unpower(instance)
        self._ground.truth.gone(instance.name, self._ground.timeline.now())
        del self.instances[instance.name]
        if instance.order.coupon_id:
            self.coupons[instance.order.coupon_id] = self._ground.truth.machines[instance.name].settle_coupon()
        self._ground.weigh(instance.name, self._disk(instance), *self._volumes(instance), remove=True)

    def _expire(self, instance: Instance) -> None:
        if instance.status == "Running" and self._is_over(instance):
            self.power_off(instance, grace_s=0.0, snapshot=None)

    def _is_over(self, instance: Instance) -> bool:
        return instance.stops_at is not None and self._ground.timeline.now() >= instance.stops_at

    def _unpower(self, instance: Instance) -> None:
        self._ground.truth.powered_off(instance.name, self._ground.timeline.now())
        instance.endpoint = None
        self._free_gpus(instance)

    def _take_gpus(self, instance: Instance) -> None:
        sku = instance.order.sku
        if self.idle[sku.gpu] < sku.gpu_count:
            raise Refused(Reason.NO_STOCK, f"库存不足: {sku.gpu}")
        self.idle[sku.gpu] -= sku.gpu_count
        instance.holds_gpus = True

    def _free_gpus(self, instance: Instance) -> None:
        if instance.holds_gpus:
            self.idle[instance.order.sku.gpu] += instance.order.sku.gpu_count
            instance.holds_gpus = False

    def _reach(self, instance: Instance, status: Status) -> None:
        if instance.status != "Creating":
            instance.updated_at = self._ground.timeline.now()
        instance.status = status

    def _image_folder(self, image: str) -> Path | None:
        """Return a saved image's folder, None for an official image."""
        harbor = MATRIXDC_REGION.harbor_addr
        if _is_official(image):
            return None
        for full_name in _spellings(image, harbor=harbor, namespace=self.namespace):
            if full_name in self.images:
                return self.images[full_name]
        raise Refused(Reason.NOT_FOUND, f"镜像不存在: {image}")

    def _disk(self, instance: Instance) -> Path:
        return self._folder / "disks" / instance.name

    def _uuid(self) -> str:
        return str(UUID(int=self._ground.random.getrandbits(128), version=4))


def _target(instance: Instance) -> Target:
    return Target(provider="matrixdc", id=instance.name, name=instance.order.display_name)


def _truth(instance: Instance, *, owner: str, coupon_cny: float) -> MachineTruth:
    order = instance.order
    return MachineTruth(
        provider="matrixdc",
        id=instance.name,
        name=order.display_name,
        owner=owner,
        gpu=order.sku.gpu,
        gpu_count=order.sku.gpu_count,
        region=MATRIXDC_REGION.name,
        price_cny_per_h=0.0 if order.prepaid_s else order.sku.price_cny,
        made_at=instance.created_at,
        prepaid_cny=order.prepaid_cny,
        coupon_cny=coupon_cny,
    )


def _is_official(image: str) -> bool:
    """Any well-formed name in the provider's public project counts as an official image."""
    prefix = f"{MATRIXDC_REGION.harbor_addr}/{MATRIXDC_PUBLIC_PROJECT}/"
    name, _, tag = image.removeprefix(prefix).partition(":")
    named = _IMAGE_NAME.fullmatch(name) is not None and _IMAGE_TAG.fullmatch(tag) is not None
    return image.startswith(prefix) and named


def _spellings(image: str, *, harbor: str, namespace: str) -> Iterable[str]:
    """Return the full names that an image may mean: as given, or a private image's bare name:tag."""
    return image, f"{harbor}/{namespace}/{image}"


def _check_image_name(name: str, tag: str) -> None:
    if not _IMAGE_NAME.fullmatch(name) or not _IMAGE_TAG.fullmatch(tag):
        raise Refused(Reason.BAD_REQUEST, f"镜像名称或版本不合法: {name}:{tag}")
