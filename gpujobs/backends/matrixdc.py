"""MatrixDC: a machine is an instance in a cluster; its region is the cluster, its id the instance's `name`.

Source: MatrixDC's API document, "算力API". The endpoints are in `_matrixdc_wire`.
"""

import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from gpujobs.backends._http import Door, Patience
from gpujobs.backends._matrixdc_wire import Instance, InstanceList, MatrixDCClient, Region, Sku, provider
from gpujobs.backends._reading import Recent, StatusTable, gpu_key, link, ssh_address, unknown
from gpujobs.clock import Clock
from gpujobs.errors import BadInput, NotFound, Refused, Unavailable
from gpujobs.models import Access, Event, Image, ImageRef, Machine, MachineStatus, Offer
from gpujobs.recipe import Recipe, Volume
from gpujobs.settings import Account

DEFAULT_IMAGE = "images.neolink-ai.com/matrixdc/tensorflow:2.15.0-python3.10-cuda12.1.0-cudnn8-devel-ubuntu22.04"
DEFAULT_VOLUME = Volume(path="/root/data", size=50)
_STATUS = {
    "Creating": MachineStatus.BOOTING,
    "Starting": MachineStatus.BOOTING,
    "Running": MachineStatus.RUNNING,
    "Shutting Down": MachineStatus.STOPPING,
    "Shutdown": MachineStatus.OFF,
    "Deleting": MachineStatus.STOPPING,
}
_STARTED = (MachineStatus.BOOTING, MachineStatus.RUNNING)
_STOPPED = (MachineStatus.STOPPING, MachineStatus.OFF)
_REGIONS_KEPT_S = 600.0
_SETTLING_S = 30.0  # for so long a list may lack what we made
_ENDING_S = 86400.0
_log = logging.getLogger("gpujobs.backends.matrixdc")


def open_backend(
    account: Account, *, clock: Clock, dice: random.Random | None = None, patience: Patience | None = None
) -> "MatrixDC":
    """Make the backend for `account`; sends nothing yet. Raises BadInput without a namespace."""
    if not account.namespace:
        raise BadInput("MATRIXDC_NAMESPACE is not set; export your user id, as MatrixDC's console shows it")
    client = MatrixDCClient(Door(provider(account), clock=clock, dice=dice, patience=patience))
    return MatrixDC(client, account=account, clock=clock)


class MatrixDC:
    """The backend protocol on MatrixDC. Safe for many threads."""

    name = "matrixdc"
    has_snapshots = True
    ends_itself = False
    work_root = "/root/data/gpujobs"

    def __init__(self, client: MatrixDCClient, *, account: Account, clock: Clock) -> None:
        """Work through `client`; `account` says how prices are read."""
        self._client = client
        self._account = account
        self._clock = clock
        self._table = StatusTable(self.name, _STATUS)
        self._lock = threading.Lock()
        self._regions: tuple[float, Sequence[Region]] | None = None
        self._prices: dict[str, float] = {}  # by size, as the last offers had them
        self._seen: dict[str, tuple[str, datetime]] = {}  # by machine: its status and since when
        self._made = Recent(clock, kept_s=_SETTLING_S)
        self._ending = Recent(clock, kept_s=_ENDING_S)

    def check(self, recipe: Recipe) -> None:
        """Refuse volumes that would lie over one another or over the system's disk."""
        paths = [volume.path.rstrip("/") for volume in recipe.resources.volumes]
        if "" in paths or len(set(paths)) != len(paths):
            raise BadInput("resources.volumes: each volume needs a path of its own, and none is /")

    def offers(self, recipe: Recipe) -> Sequence[Offer]:
        """Give the sizes that fit and are free, cheapest first; prices are estimates, their unit is undocumented."""
        places = self._places(recipe.resources.regions_for(self.name))
        selling = str(recipe.matrixdc.cost_type)
        sizes = [(word, sku) for word, region in places.items() for sku in self._client.skus(region.id)]
        fitting = self._fitting(recipe, [(word, sku) for word, sku in sizes if sku.selling_type == selling])
        offers = [self._offer(word, sku) for word, sku in fitting if sku.remain_gpu_count >= sku.gpu_counts]
        affordable = [offer for offer in offers if _within(offer.price_cny_per_h, recipe.resources.max_price)]
        return sorted(affordable, key=lambda one: (one.price_cny_per_h is None, one.price_cny_per_h or 0.0))

    def create(self, recipe: Recipe, offer: Offer, *, name: str, image: str, count: int = 1) -> Machine:
        """Make one instance."""
        if count != 1:
            raise BadInput(f"MatrixDC makes one machine a request, not {count}")
        region = self._region(offer.region)
        image = image or DEFAULT_IMAGE
        body = self._request(recipe, offer, region=region, name=name, image=image)
        try:
            instance = self._client.create_instance(region.cluster_name, body)
        except NotFound as error:
            raise Refused(f"{error}; is resources.image ({image}) an image of MatrixDC's or of yours?") from error
        self._made.add(instance.name)
        made = self._described(instance, region.cluster_name)
        return replace(
            made,
            name=made.name or name,
            price_cny_per_h=offer.price_cny_per_h,
            created_at=made.created_at or self._clock.now(),
        )

    def find(self, prefix: str) -> Sequence[Machine]:
        """List the instances of every cluster whose display name begins with `prefix`.

        Raises Unavailable where MatrixDC gives only a part of its list: a part must not pass for the whole.
        """
        found: list[Machine] = []
        for cluster in self._clusters():
            listed = self._list(cluster)
            if not listed.complete:
                raise Unavailable(
                    f"MatrixDC lists only {len(listed.nodes)} of {listed.total_count or 'more'} instances in {cluster} "
                    "and documents no way to the next page; delete instances in its console that are not needed"
                )
            found += [self._described(one, cluster) for one in listed.nodes if one.display_name.startswith(prefix)]
        return found

    def events(self, machines: Sequence[Machine]) -> Sequence[Event]:
        """Give where each machine stands now; one list call a cluster, however many machines there are.

        A machine that is not in the list is asked for by itself before it is called gone.
        """
        events: list[Event] = []
        for cluster in dict.fromkeys(machine.region for machine in machines):
            nodes = {one.name: one for one in self._list(cluster).nodes}
            for machine in machines:
                if machine.region == cluster:
                    events += self._standing(machine, nodes.get(machine.id))
        return events

    def access(self, machine: Machine) -> Access | None:
        """Give the instance's SSH address; None while it has none."""
        instance = self._client.instance(machine.region, machine.id)
        ssh = instance.servers.ssh
        if not ssh.address or self._table.read(instance.status) is not MachineStatus.RUNNING:
            return None
        user, host, port = ssh_address(ssh.address, of=f"MatrixDC's instance {machine.id}")
        urls = {"jupyter": instance.servers.jupyterlab, "tensorboard": instance.servers.tensorboard}
        links = {service: url for service, text in urls.items() if text and (url := link(text))}
        return Access(host=host, port=port, user=user, password=ssh.password.get_secret_value(), links=links)

    def refresh(self, machine: Machine) -> Machine:
        """Describe the instance anew. Raises NotFound."""
        anew = self._described(self._client.instance(machine.region, machine.id), machine.region)
        price = machine.price_cny_per_h if machine.price_cny_per_h is not None else anew.price_cny_per_h
        return replace(anew, price_cny_per_h=price)

    def power_off(self, machine: Machine, *, snapshot: ImageRef | None = None) -> str:
        """Stop the instance, saving its disk where asked; idempotent. Gives the saved image's reference, or ""."""
        image = snapshot or ImageRef(name="", tag="")
        self._act(
            lambda: self._client.power_off(machine.region, machine.id, image_name=image.name, tag=image.tag),
            machine,
            done=_STOPPED,
        )
        if snapshot is None:
            return ""
        harbor = self._region(machine.region).harbor_addr
        return f"{harbor}/{self._account.namespace}/{snapshot.name}:{snapshot.tag}"

    def power_on(self, machine: Machine) -> None:
        """Start the instance again, with a new password and port; idempotent."""
        self._act(lambda: self._client.power_on(machine.region, machine.id), machine, done=_STARTED)

    def release(self, machine: Machine) -> None:
        """Delete the instance with its disks; idempotent, and already gone is success."""
        self._ending.add(machine.id)
        try:
            self._client.delete_instance(machine.region, machine.id)
        except NotFound:
            return
        except Refused:
            if not self._is_being_deleted(machine):
                raise

    def avoid(self, machine: Machine, *, why: str) -> bool:  # noqa: ARG002 - the protocol's
        """Say that MatrixDC has no way to keep off a host."""
        return False

    def images(self) -> Sequence[Image]:
        """Give nothing: MatrixDC's API lists no images."""
        return []

    def _act(self, ask: Callable[[], None], machine: Machine, *, done: Sequence[MachineStatus]) -> None:
        """Ask for a change; a refusal is success where the instance is already on its way there."""
        try:
            ask()
        except NotFound:
            raise
        except Refused:
            if self.refresh(machine).status not in done:
                raise

    def _is_being_deleted(self, machine: Machine) -> bool:
        try:
            return self._client.instance(machine.region, machine.id).status.casefold() == "deleting"
        except NotFound:
            return True

    def _request(self, recipe: Recipe, offer: Offer, *, region: Region, name: str, image: str) -> Mapping[str, Any]:
        section = recipe.matrixdc
        return {
            "Cost": {
                "CostType": str(section.cost_type),
                "CouponID": section.coupon,
                "DiskSKUID": "1",
                "GPUSKUID": offer.sku,
                "CostTime": section.cost_time,
            },
            "VolumeMount": [
                {"PathInContainer": volume.path, "Size": volume.size, "Type": "shared-filesystem"}
                for volume in recipe.resources.volumes or [DEFAULT_VOLUME]
            ],
            "namespace": self._account.namespace,
            "displayName": name,
            "image": image,
            "Region": region.region,
        }

    def _all_regions(self) -> Sequence[Region]:
        with self._lock:
            kept = self._regions
        if kept is not None and self._clock.monotonic() - kept[0] < _REGIONS_KEPT_S:
            return kept[1]
        regions = self._client.regions()
        with self._lock:
            self._regions = (self._clock.monotonic(), regions)
        return regions

    def _clusters(self) -> Sequence[str]:
        return list(dict.fromkeys(region.cluster_name for region in self._all_regions()))

    def _region(self, word: str) -> Region:
        """Give the region with this name, cluster or id; raises BadInput with the nearest ones."""
        regions = self._all_regions()
        for region in regions:
            if word.casefold() in (region.region.casefold(), region.cluster_name.casefold(), region.id.casefold()):
                return region
        known = [name for region in regions for name in (region.region, region.cluster_name)]
        raise unknown("region", word, known, provider="MatrixDC", where="resources.infra")

    def _places(self, wanted: Sequence[str] | None) -> Mapping[str, Region]:
        """Give the regions to ask, each by the word that the recipe has for it."""
        if wanted is None:
            return {}
        if not wanted:
            return {region.cluster_name: region for region in self._all_regions()}
        return {word: self._region(word) for word in wanted}

    def _fitting(self, recipe: Recipe, sizes: Sequence[tuple[str, Sku]]) -> Sequence[tuple[str, Sku]]:
        """Keep the sizes that the recipe fits into; raises BadInput where none ever could."""
        want = recipe.resources
        keys = {(gpu_key(name), count) for name, count in want.wanted}
        named = [(word, sku) for word, sku in sizes if gpu_key(sku.name) in {key for key, _ in keys}]
        if sizes and not named:
            known = {sku.name for _, sku in sizes}
            raise unknown("GPU", want.wanted[0][0], known, provider="MatrixDC", where="resources.accelerators")
        counted = [(word, sku) for word, sku in named if (gpu_key(sku.name), sku.gpu_counts) in keys]
        if named and not counted:
            counts = ", ".join(sorted({f"{sku.name}:{sku.gpu_counts}" for _, sku in named}))
            raise BadInput(f"MatrixDC rents {counts}; mend the count in resources.accelerators")
        fitting = [
            (word, sku) for word, sku in counted if sku.cpucores >= want.cpus and sku.memory_count >= want.memory
        ]
        if counted and not fitting:
            best = max((sku for _, sku in counted), key=lambda sku: (sku.memory_count, sku.cpucores))
            raise BadInput(
                f"MatrixDC's {best.name} x{best.gpu_counts} has {best.cpucores} CPUs and {best.memory_count:g} GB; "
                "lower resources.cpus or resources.memory"
            )
        return fitting

    def _offer(self, word: str, sku: Sku) -> Offer:
        price = self._price(sku.price)
        if price is not None:
            self._prices[sku.skus_id] = price
        return Offer(
            backend=self.name,
            region=word,
            gpu=sku.name,
            gpu_count=sku.gpu_counts,
            gpu_memory_gb=sku.gpu_memory or None,
            cpus=sku.cpucores,
            memory_gb=sku.memory_count,
            price_cny_per_h=price,
            price_is_estimate=True,
            free=sku.remain_gpu_count // max(sku.gpu_counts, 1),
            sku=sku.skus_id,
        )

    def _price(self, price: float | None) -> float | None:
        """Read a size's price: the one place that knows what its unit is taken to be."""
        return None if price is None else price * self._account.price_scale

    def _list(self, cluster: str) -> InstanceList:
        listed = self._client.instances(cluster)
        if not listed.complete:
            _log.warning(
                "MatrixDC lists only %d of %s instances in %s, and documents no way to the next page",
                len(listed.nodes),
                listed.total_count,
                cluster,
            )
        return listed

    def _standing(self, machine: Machine, instance: Instance | None) -> Sequence[Event]:
        if instance is None:
            try:
                instance = self._client.instance(machine.region, machine.id)
            except NotFound:
                return self._absent(machine)
        status = self._table.read(instance.status)
        return [
            Event(
                machine_id=machine.id,
                unit="",
                status=status,
                raw_status=instance.status,
                at=self._since(instance),
            )
        ]

    def _absent(self, machine: Machine) -> Sequence[Event]:
        if machine.id in self._made and machine.id not in self._ending:
            return []
        with self._lock:
            self._seen.pop(machine.id, None)
        return [Event(machine_id=machine.id, unit="", status=MachineStatus.GONE, raw_status="", at=None)]

    def _since(self, instance: Instance) -> datetime:
        """Say since when it has its status, as far as we saw: MatrixDC gives no events and often no time."""
        with self._lock:
            status, since = self._seen.get(instance.name, ("", None))
            if since is None or status != instance.status:
                since = instance.updated_at or self._clock.now()
                self._seen[instance.name] = (instance.status, since)
            return since

    def _described(self, instance: Instance, cluster: str) -> Machine:
        return Machine(
            backend=self.name,
            id=instance.name,
            name=instance.display_name,
            region=cluster,
            status=self._table.read(instance.status),
            raw_status=instance.status,
            host=instance.pods[0].node if instance.pods else "",
            price_cny_per_h=self._prices.get(instance.annotation("cost-gpu-sku-id")),
            created_at=instance.created_at,
        )


def _within(price: float | None, most: float | None) -> bool:
    return most is None or (price is not None and price <= most)
