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
from gpujobs.backends._matrixdc_market import Market
from gpujobs.backends._matrixdc_wire import Instance, InstanceList, MatrixDCClient, Region, provider
from gpujobs.backends._reading import Recent, StatusTable, link, ssh_address
from gpujobs.clock import Clock
from gpujobs.errors import BadInput, NotFound, Refused, Unavailable
from gpujobs.models import Access, Catalogue, Event, Image, ImageRef, Machine, MachineStatus, Offer
from gpujobs.recipe import Recipe, Volume
from gpujobs.settings import Account

CATALOGUE = Catalogue(gpus=("4090", "H20"), regions=("北京一区",), snapshots=True)
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
    work_root = "/root/data/gpujobs"

    def __init__(self, client: MatrixDCClient, *, account: Account, clock: Clock) -> None:
        """Work through `client`; `account` says how prices are read."""
        self._client = client
        self._namespace = account.namespace
        self._market = Market(client, account=account, clock=clock)
        self._clock = clock
        self._table = StatusTable(self.name, _STATUS)
        self._lock = threading.Lock()
        self._warned: set[str] = set()
        self._seen: dict[str, tuple[str, datetime]] = {}  # by machine: its status and since when
        self._made = Recent(clock, kept_s=_SETTLING_S)
        self._ending = Recent(clock, kept_s=_ENDING_S)

    def ends_itself(self, recipe: Recipe) -> bool:  # noqa: ARG002 - the protocol's
        """Say no: a shutdown inside an instance does not stop its bill."""
        return False

    def check(self, recipe: Recipe) -> None:
        """Refuse volumes that would lie over one another or over the system's disk."""
        paths = [volume.path.rstrip("/") for volume in recipe.resources.volumes]
        if "" in paths or len(set(paths)) != len(paths):
            raise BadInput("resources.volumes: each volume needs a path of its own, and none is /")

    def offers(self, recipe: Recipe) -> Sequence[Offer]:
        """Give the sizes that fit and are free, cheapest first; prices are estimates, their unit is undocumented."""
        return self._market.offers(recipe)

    def create(self, recipe: Recipe, offer: Offer, *, name: str, image: str, count: int = 1) -> Machine:
        """Make one instance."""
        if count != 1:
            raise BadInput(f"MatrixDC makes one machine a request, not {count}")
        region = self._market.region(offer.region)
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
        for cluster in self._market.clusters():
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
        price = anew.price_cny_per_h if anew.price_cny_per_h is not None else machine.price_cny_per_h
        return replace(anew, price_cny_per_h=price)

    def power_off(self, machine: Machine, *, snapshot: ImageRef | None = None) -> str:
        """Stop the instance, saving its disk where asked; idempotent. Gives the saved image's reference, or "".

        One that is gone already is success, but for the disk that was to be saved: that is NotFound.
        """
        image = snapshot or ImageRef(name="", tag="")
        try:
            self._act(
                lambda: self._client.power_off(machine.region, machine.id, image_name=image.name, tag=image.tag),
                machine,
                done=_STOPPED,
            )
        except NotFound:
            if snapshot is not None:
                raise
        if snapshot is None:
            return ""
        harbor = self._market.region(machine.region).harbor_addr
        return f"{harbor}/{self._namespace}/{snapshot.name}:{snapshot.tag}"

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
            "namespace": self._namespace,
            "displayName": name,
            "image": image,
            "Region": region.region,
        }

    def _list(self, cluster: str) -> InstanceList:
        listed = self._client.instances(cluster)
        if not listed.complete and cluster not in self._warned:
            self._warned.add(cluster)
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
            price_cny_per_h=self._market.price_of(instance.annotation("cost-gpu-sku-id")),
            created_at=instance.created_at,
        )
