"""AutoDL, elastic deployment: a machine is a deployment (its id) with one container in it (its unit).

Source: AutoDL's API document, "弹性部署API文档". The endpoints are in `_autodl_wire`.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpujobs.backends._autodl_events import CONTAINER_STATUS, OVER, EventBook
from gpujobs.backends._autodl_replies import Container, Deployment
from gpujobs.backends._autodl_stock import CNY, PRICE_CAP_PER_GPU, PRICE_FROM, StockBook, ranges, region_sign
from gpujobs.backends._autodl_wire import AutoDLClient, provider
from gpujobs.backends._http import Door, Patience
from gpujobs.backends._reading import Recent, StatusTable, link, nearest, ssh_address
from gpujobs.clock import Clock
from gpujobs.errors import BadInput, NotFound, Refused, Unavailable
from gpujobs.models import Access, Event, Image, ImageRef, Machine, MachineStatus, Offer
from gpujobs.recipe import Recipe
from gpujobs.remote import keeper_command
from gpujobs.settings import Account

# Appendix 2 of the API document.
BASE_IMAGES = {
    "base-image-12be412037": "PyTorch, cuda11.1-cudnn8-devel-ubuntu18.04-py38-torch1.9.0",
    "base-image-u9r24vthlk": "PyTorch, cuda11.3-cudnn8-devel-ubuntu20.04-py38-torch1.10.0",
    "base-image-l374uiucui": "PyTorch, cuda11.3-cudnn8-devel-ubuntu20.04-py38-torch1.11.0",
    "base-image-l2t43iu6uk": "PyTorch, cuda11.8-cudnn8-devel-ubuntu20.04-py38-torch2.0.0",
    "base-image-0gxqmciyth": "TensorFlow, cuda11.2-cudnn8-devel-ubuntu18.04-py38-tf2.5.0",
    "base-image-uxeklgirir": "TensorFlow, cuda11.2-cudnn8-devel-ubuntu20.04-py38-tf2.9.0",
    "base-image-4bpg0tt88l": "TensorFlow, cuda11.4-py38-tf1.15.5",
    "base-image-mbr2n4urrc": "Miniconda, cuda11.6-cudnn8-devel-ubuntu20.04-py38",
    "base-image-qkkhitpik5": "Miniconda, cuda10.2-cudnn7-devel-ubuntu18.04-py38",
    "base-image-h041hn36yt": "Miniconda, cuda11.1-cudnn8-devel-ubuntu18.04-py38",
    "base-image-7bn8iqhkb5": "Miniconda, cudagl11.3-cudnn8-devel-ubuntu20.04-py38",
    "base-image-k0vep6kyq8": "Miniconda, cuda9.0-cudnn7-devel-ubuntu16.04-py36",
    "base-image-l2843iu23k": "TensorRT, cuda11.8-cudnn8-devel-ubuntu20.04-py38-trt8.5.1",
}
DEFAULT_IMAGE = "base-image-l2t43iu6uk"
BOOT_GRACE_S = 1800  # a container on which no job has started by then ends itself
_LIVING = ("creating", "created", "starting", "oss_merged", "running", "shutting_down")
_COMMENT_CAP = 100
_SETTLING_S = 30.0  # for so long a list may lack what we made
_ENDING_S = 86400.0


def open_backend(
    account: Account, *, clock: Clock, dice: random.Random | None = None, patience: Patience | None = None
) -> "AutoDL":
    """Make the backend for `account`; sends nothing yet."""
    return AutoDL(AutoDLClient(Door(provider(account), clock=clock, dice=dice, patience=patience)), clock=clock)


class AutoDL:
    """The backend protocol on AutoDL's elastic deployment. Safe for many threads."""

    name = "autodl"
    has_snapshots = False
    ends_itself = True
    work_root = "/root/autodl-tmp/gpujobs"

    def __init__(self, client: AutoDLClient, *, clock: Clock) -> None:
        """Work through `client`."""
        self._client = client
        self._clock = clock
        self._containers = StatusTable(self.name, CONTAINER_STATUS)
        self._deployments = StatusTable(self.name, {"running": MachineStatus.RUNNING, "stopped": MachineStatus.ENDED})
        self._stock = StockBook(client, clock=clock)
        self._events = EventBook(client, table=self._containers)
        self._made = Recent(clock, kept_s=_SETTLING_S)
        self._ending = Recent(clock, kept_s=_ENDING_S)

    def check(self, recipe: Recipe) -> None:
        """Refuse snapshots and volumes, which this API does not have."""
        if recipe.snapshot is not None:
            raise BadInput("AutoDL's API cannot save an image; leave snapshot out, or use resources.infra: matrixdc")
        if recipe.resources.volumes:
            raise BadInput("AutoDL's API takes no volumes; leave resources.volumes out, /root/autodl-tmp is its disk")
        if recipe.resources.image_for(self.name).startswith("snapshot:"):
            raise BadInput("AutoDL's API has no snapshots to boot from; give resources.image the uuid of an image")

    def offers(self, recipe: Recipe) -> Sequence[Offer]:
        """Give what is free, cheapest first; prices are upper bounds that AutoDL is held to."""
        return self._stock.offers(recipe)

    def create(self, recipe: Recipe, offer: Offer, *, name: str, image: str, count: int = 1) -> Machine:
        """Make a deployment of `count` containers whose command keeps them alive, and ends them in time."""
        body = self._request(recipe, offer, name=name, image=self._image_uuid(image), count=count)
        try:
            uuid = self._client.create_deployment(body)
        except NotFound as error:
            raise self._unknown_image(image) from error
        self._made.add(uuid)
        return Machine(
            backend=self.name,
            id=uuid,
            name=name,
            region=region_sign(offer.region),
            status=MachineStatus.QUEUED,
            price_cny_per_h=offer.price_cny_per_h,
            created_at=self._clock.now(),
        )

    def find(self, prefix: str) -> Sequence[Machine]:
        """List deployments, running and stopped, whose name begins with `prefix`."""
        return [self._described(one) for one in self._client.deployments() if one.name.startswith(prefix)]

    def events(self, machines: Sequence[Machine]) -> Sequence[Event]:
        """Give all events of each machine, oldest first, the last one of each being where it stands now.

        One call a machine, and one more for a machine that waits for a host, is over, or was asked to end: its
        events alone cannot tell whether it is gone.
        """
        return [event for machine in machines for event in self._events_of(machine)]

    def access(self, machine: Machine) -> Access | None:
        """Give the running container's address; None while there is none."""
        container = self._living(machine)
        if container is None or container.status != "running" or not container.info.ssh_command:
            return None
        user, host, port = ssh_address(container.info.ssh_command, of=f"AutoDL's container {container.uuid}")
        urls = {"6006": container.info.service_6006_port_url, "6008": container.info.service_6008_port_url}
        links = {service: url for service, text in urls.items() if text and (url := link(text))}
        password = container.info.root_password.get_secret_value()
        return Access(host=host, port=port, user=user, password=password, links=links)

    def refresh(self, machine: Machine) -> Machine:
        """Describe the deployment and its container anew. Raises NotFound."""
        deployment = self._deployment(machine.id)
        if deployment is None:
            if self._young(machine.id):
                raise Unavailable(f"AutoDL: deployment {machine.id} is not listed yet; try again later")
            raise NotFound(f"AutoDL: there is no deployment {machine.id} ({machine.name})")
        anew = self._described(deployment)
        container = self._living(machine)
        if container is None:
            return replace(anew, unit=machine.unit, host=machine.host, region=anew.region or machine.region)
        return replace(
            anew,
            status=self._containers.read(container.status),
            raw_status=container.status,
            unit=container.uuid,
            host=container.machine_id,
            region=container.data_center or machine.region,
            price_cny_per_h=container.price_cny_per_h or machine.price_cny_per_h,
        )

    def power_off(self, machine: Machine, *, snapshot: ImageRef | None = None) -> str:
        """Stop the deployment; idempotent. Raises Refused for a snapshot."""
        if snapshot is not None:
            raise Refused("AutoDL's API cannot save an image")
        self._ending.add(machine.id)
        try:
            self._client.stop_deployment(machine.id)
        except NotFound:
            return ""
        return ""

    def power_on(self, machine: Machine) -> None:
        """Refuse: a stopped deployment stays stopped."""
        raise Refused(f"AutoDL cannot start deployment {machine.id} again; submit the recipe anew")

    def release(self, machine: Machine) -> None:
        """Stop and delete the deployment; idempotent, and already gone is success."""
        self._ending.add(machine.id)
        try:
            self._client.delete_deployment(machine.id)
        except NotFound:
            return

    def avoid(self, machine: Machine, *, why: str) -> bool:
        """Keep our deployments off the container's host for a day; False where it has no container."""
        if not machine.unit:
            return False
        try:
            self._client.block_host(machine.unit, comment=f"gpujobs: {why}"[:_COMMENT_CAP])
        except NotFound:
            return False
        return True

    def images(self) -> Sequence[Image]:
        """List the documented base images and the account's own."""
        base = [Image(backend=self.name, ref=uuid, title=title, private=False) for uuid, title in BASE_IMAGES.items()]
        own = [
            Image(backend=self.name, ref=one.image_uuid, title=one.image_name, private=True)
            for one in self._client.private_images()
        ]
        return [*own, *base]

    def _request(self, recipe: Recipe, offer: Offer, *, name: str, image: str, count: int) -> Mapping[str, Any]:
        kind = recipe.autodl.deployment_type
        if kind == "Container" and count != 1:
            raise BadInput("autodl.deployment_type Container is one machine; use Job or ReplicaSet for several")
        price = offer.price_cny_per_h
        template = {
            "dc_list": [region_sign(offer.region)],
            "gpu_name_set": [offer.gpu],
            "gpu_num": offer.gpu_count,
            **ranges(recipe.resources),
            "price_from": PRICE_FROM,
            "price_to": PRICE_CAP_PER_GPU * offer.gpu_count if price is None else math.ceil(price * CNY),
            "image_uuid": image,
            "cmd": keeper_command(
                base=self.work_root,
                boot_grace_s=BOOT_GRACE_S,
                max_duration_s=recipe.max_duration,
                linger_s=recipe.linger,
            ),
        }
        copies = {"replica_num": count} if kind != "Container" else {}
        return {
            "name": name,
            "deployment_type": kind,
            **copies,
            **({"parallelism_num": count} if kind == "Job" else {}),
            "reuse_container": recipe.autodl.reuse_container,
            "container_template": template,
        }

    def _image_uuid(self, image: str) -> str:
        """Give the uuid for a uuid, or for the name of a private image."""
        image = image or DEFAULT_IMAGE
        if image.startswith(("image-", "base-image-")):
            return image
        uuids = [one.image_uuid for one in self._client.private_images() if one.image_name == image]
        if len(uuids) > 1:
            raise Refused(f"AutoDL has {len(uuids)} images named {image!r}; give resources.image the uuid of one")
        if not uuids:
            raise self._unknown_image(image)
        return uuids[0]

    def _unknown_image(self, image: str) -> Refused:
        try:
            own = [name for one in self._client.private_images() for name in (one.image_uuid, one.image_name)]
        except Unavailable:
            own = []
        names = ", ".join(nearest(image, [*own, *BASE_IMAGES]))
        return Refused(f"AutoDL has no image {image!r}; nearest: {names}; mend resources.image (see `gpujobs images`)")

    def _events_of(self, machine: Machine) -> Sequence[Event]:
        try:
            history = self._events.history(machine.id)
        except NotFound:
            history = []
        last = history[-1] if history else None
        if last is not None and last.status not in OVER and machine.id not in self._ending:
            return history
        deployment = self._deployment(machine.id)
        if deployment is None:
            return [*history, *self._absent(machine)]
        return [*history, *self._standing(deployment, history)]

    def _absent(self, machine: Machine) -> Sequence[Event]:
        if self._young(machine.id):
            return []
        self._events.forget(machine.id)
        return [Event(machine_id=machine.id, unit=machine.unit, status=MachineStatus.GONE, raw_status="", at=None)]

    def _standing(self, deployment: Deployment, history: Sequence[Event]) -> Sequence[Event]:
        """Say how a listed deployment stands whose events do not end in a living container."""
        if history and history[-1].status not in OVER:
            return []
        over = len({event.unit for event in history})
        status, at = MachineStatus.QUEUED, deployment.created_at
        if deployment.status == "stopped" or self._is_done(deployment, over):
            status, at = MachineStatus.ENDED, deployment.stopped_at
            if history:
                return []
        return [Event(machine_id=deployment.uuid, unit="", status=status, raw_status=deployment.status, at=at)]

    def _is_done(self, deployment: Deployment, over: int) -> bool:
        """Say whether no container will come any more; a Job can read `running` long after its end."""
        if deployment.deployment_type == "ReplicaSet":
            return False
        wanted = max(deployment.replica_num, 1)
        return deployment.finished_num >= wanted or over >= wanted

    def _described(self, deployment: Deployment) -> Machine:
        regions = deployment.template.dc_list if deployment.template else ()
        return Machine(
            backend=self.name,
            id=deployment.uuid,
            name=deployment.name,
            region=regions[0] if len(regions) == 1 else "",
            status=self._status(deployment),
            raw_status=deployment.status,
            created_at=deployment.created_at,
        )

    def _status(self, deployment: Deployment) -> MachineStatus:
        status = self._deployments.read(deployment.status)
        if status is MachineStatus.UNKNOWN:
            return status
        stopped = status is MachineStatus.ENDED
        if deployment.running_num:
            return MachineStatus.STOPPING if stopped else MachineStatus.RUNNING
        if deployment.starting_num:
            return MachineStatus.STOPPING if stopped else MachineStatus.BOOTING
        if stopped or self._is_done(deployment, 0):
            return MachineStatus.ENDED
        return self._status_by_containers(deployment)

    def _status_by_containers(self, deployment: Deployment) -> MachineStatus:
        """Look at the containers themselves, since the list may count none that live, or none that ended."""
        uuid = deployment.uuid
        found = [*self._client.containers(uuid), *self._client.containers(uuid, released=True)]
        statuses = {one.uuid: self._containers.read(one.status) for one in found}
        living = [status for status in statuses.values() if status not in OVER]
        if living:
            return MachineStatus.RUNNING if MachineStatus.RUNNING in living else living[0]
        return MachineStatus.ENDED if self._is_done(deployment, len(statuses)) else MachineStatus.QUEUED

    def _deployment(self, uuid: str) -> Deployment | None:
        try:
            found = self._client.deployments(uuid=uuid)
        except NotFound:
            return None
        return next((one for one in found if one.uuid == uuid), None)

    def _living(self, machine: Machine) -> Container | None:
        """Give the container that counts: the machine's own while it lives, else the one that is furthest."""
        living = [one for one in self._client.containers(machine.id) if one.status in _LIVING]
        return max(living, key=lambda one: (one.status == "running", one.uuid == machine.unit), default=None)

    def _young(self, uuid: str) -> bool:
        """Say whether the provider's list may lack it only because we made it just now."""
        return uuid in self._made and uuid not in self._ending
