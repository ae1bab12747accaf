"""AutoDL, elastic deployment: a machine is a deployment (its id) with one container in it (its unit).

Source: AutoDL's API document, "弹性部署API文档". The endpoints are in `_autodl_wire`.
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import replace

from gpujobs.backends._autodl_events import CONTAINER_STATUS, OVER, EventBook
from gpujobs.backends._autodl_replies import Container, Deployment
from gpujobs.backends._autodl_request import BASE_IMAGES, deployment_body, image_uuid, unknown_image
from gpujobs.backends._autodl_stock import REGIONS, StockBook, region_sign
from gpujobs.backends._autodl_wire import AutoDLClient, provider
from gpujobs.backends._http import Door, Patience
from gpujobs.backends._reading import Recent, StatusTable, link, ssh_address
from gpujobs.clock import Clock
from gpujobs.errors import BadInput, NotFound, Refused, Unavailable
from gpujobs.models import Access, Catalogue, Event, Image, ImageRef, Machine, MachineStatus, Offer
from gpujobs.recipe import Recipe
from gpujobs.settings import Account

CATALOGUE = Catalogue(
    gpus=("RTX 4090", "RTX 3090", "RTX 3080 Ti", "RTX A4000", "TITAN Xp", "L20", "Tesla V100-SXM2-32GB"),
    regions=tuple(REGIONS),
    snapshots=False,
)
_LIVING = ("creating", "created", "starting", "oss_merged", "running", "shutting_down")
_COMMENT_CAP = 100
_log = logging.getLogger("gpujobs.backends.autodl")
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

    def ends_itself(self, recipe: Recipe) -> bool:
        """Say yes, but for a ReplicaSet, which puts a new container in the place of one that has ended."""
        return recipe.autodl.deployment_type != "ReplicaSet"

    def check(self, recipe: Recipe) -> None:
        """Refuse snapshots and volumes, which this API does not have."""
        if recipe.snapshot is not None:
            raise BadInput("it cannot save snapshots; remove `snapshot`, or use resources.infra: matrixdc")
        if recipe.resources.volumes:
            raise BadInput("AutoDL's API takes no volumes; leave resources.volumes out, /root/autodl-tmp is its disk")
        if recipe.resources.image_for(self.name).startswith("snapshot:"):
            raise BadInput("AutoDL's API has no snapshots to boot from; give resources.image the uuid of an image")

    def offers(self, recipe: Recipe) -> Sequence[Offer]:
        """Give what is free, cheapest first; prices are upper bounds that AutoDL is held to."""
        return self._stock.offers(recipe)

    def create(self, recipe: Recipe, offer: Offer, *, name: str, image: str, count: int = 1) -> Machine:
        """Make a deployment of `count` containers whose command keeps them alive, and ends them in time."""
        body = deployment_body(
            recipe,
            offer,
            name=name,
            image=image_uuid(self._client, image),
            count=count,
            base=self.work_root,
        )
        try:
            uuid = self._client.create_deployment(body)
        except NotFound as error:
            raise unknown_image(self._client, image) from error
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
        events alone cannot tell whether it is gone. A refusal of one machine leaves the others their news.
        """
        events: list[Event] = []
        refusals: list[Refused] = []
        for machine in machines:
            try:
                events += self._events_of(machine)
            except Refused as error:
                _log.warning("no news of %s: %s", machine.name, error)
                refusals.append(error)
        if refusals and len(refusals) == len(machines):
            raise refusals[0]
        return events

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
        try:
            found = [*self._client.containers(uuid), *self._client.containers(uuid, released=True)]
        except NotFound:
            return MachineStatus.GONE
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
