"""AutoDL's hosts: what fits where, what is free, what is banned, which stopped container can be used again."""

from collections import Counter, defaultdict
from dataclasses import dataclass

from fake_server.autodl_types import Ban, Container, StockFilter, Template
from fake_server.catalog import AUTODL_REGIONS, AutodlHost, autodl_hosts
from fake_server.refusal import Reason, Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedDisk:
    """The disk of a released container, left on its host with all that was written to it."""

    container_uuid: str
    image_uuid: str
    host: AutodlHost
    disk: str


class Fleet:
    """The hosts and their free GPUs. The world's lock guards it."""

    def __init__(self) -> None:
        self.hosts = autodl_hosts()
        self._idle = {host.machine_id: host.gpu_count - host.taken_by_others for host in self.hosts}
        self._bans: dict[str, Ban] = {}
        self._cache: list[CachedDisk] = []

    def exists(self, template: Template) -> bool:
        """Say whether any host could ever carry such a container."""
        return any(_fits(host, template) for host in self.hosts)

    def pick(self, template: Template, now: float) -> AutodlHost | None:
        """Return the cheapest free host that fits, the emptiest of equals; None if all are taken or banned."""
        free = [host for host in self.hosts if self._usable(host, template, now)]
        return min(free, key=lambda host: (host.price_milli_cny_per_h, -self._idle[host.machine_id]), default=None)

    def pick_cached(self, template: Template, now: float) -> CachedDisk | None:
        """Return a released container of the same image on a free host that fits, taking it out of the cache."""
        for cached in self._cache:
            if cached.image_uuid == template.image_uuid and self._usable(cached.host, template, now):
                self._cache.remove(cached)
                return cached
        return None

    def keep(self, container: Container) -> None:
        """Put a released container's disk into the cache."""
        self._cache.append(
            CachedDisk(
                container_uuid=container.uuid,
                image_uuid=container.deployment.template.image_uuid,
                host=container.host,
                disk=container.disk,
            )
        )

    def take(self, host: AutodlHost, gpu_count: int) -> None:
        """Occupy GPUs of a host."""
        self._idle[host.machine_id] -= gpu_count

    def free(self, host: AutodlHost, gpu_count: int) -> None:
        """Give GPUs of a host back."""
        self._idle[host.machine_id] += gpu_count

    def set_idle(self, gpu_name: str, region: str, idle: int) -> None:
        """Let other tenants take or leave, until so many GPUs are free on each such host (for tests of scarcity)."""
        for host in self.hosts:
            if host.gpu_name == gpu_name and region in ("", host.data_center):
                self._idle[host.machine_id] = min(idle, host.gpu_count)

    def stock(self, region: str, wanted: StockFilter) -> dict[str, tuple[int, int]]:
        """Return idle and total GPUs by model, of the region's hosts that could carry one GPU of the kind asked for."""
        if region not in AUTODL_REGIONS:
            raise Refused(Reason.BAD_REQUEST, "请求参数错误")
        stock: dict[str, tuple[int, int]] = {}
        for host in self.hosts:
            if host.data_center == region and _matches(host, wanted):
                idle, total = stock.get(host.gpu_name, (0, 0))
                stock[host.gpu_name] = (idle + self._idle[host.machine_id], total + host.gpu_count)
        return stock

    def saved(self) -> tuple[dict[str, int], list[Ban], list[CachedDisk]]:
        """Return what `restore` takes: idle GPUs by host, bans, reusable disks."""
        return dict(self._idle), list(self._bans.values()), list(self._cache)

    def restore(self, idle: dict[str, int], bans: list[Ban], cache: list[CachedDisk]) -> None:
        """Be again what `saved` told."""
        self._idle.update({machine_id: count for machine_id, count in idle.items() if machine_id in self._idle})
        self._bans = {ban.host.machine_id: ban for ban in bans}
        self._cache = cache

    def idle_by_region(self) -> dict[str, dict[str, int]]:
        """Return the idle GPUs by region and model."""
        idle: dict[str, Counter[str]] = defaultdict(Counter)
        for host in self.hosts:
            idle[host.data_center][host.gpu_name] += self._idle[host.machine_id]
        return {region: dict(gpus) for region, gpus in idle.items()}

    def ban(self, host: AutodlHost, *, minutes: int, comment: str, now: float) -> float:
        """Keep containers off a host; a repeated ban moves its end. Return when it ends."""
        expires_at = now + minutes * 60
        first_at = ban.created_at if (ban := self._bans.get(host.machine_id)) and ban.expires_at > now else now
        self._bans[host.machine_id] = Ban(
            host=host, comment=comment, created_at=first_at, updated_at=now, expires_at=expires_at
        )
        return expires_at

    def bans(self, now: float) -> list[Ban]:
        """Return the bans in force, latest first."""
        alive = [ban for ban in self._bans.values() if ban.expires_at > now]
        return sorted(alive, key=lambda ban: -ban.updated_at)

    def _usable(self, host: AutodlHost, template: Template, now: float) -> bool:
        ban = self._bans.get(host.machine_id)
        banned = ban is not None and ban.expires_at > now
        return not banned and self._idle[host.machine_id] >= template.gpu_count and _fits(host, template)


def _fits(host: AutodlHost, template: Template) -> bool:
    gpus = template.gpu_count
    return (
        host.data_center in template.data_centers
        and host.gpu_name in template.gpu_names
        and gpus <= host.gpu_count
        and host.cuda_v in template.cuda_v
        and host.cpus_per_gpu * gpus in template.cpus
        and host.memory_gb_per_gpu * gpus in template.memory_gb
        and host.price_milli_cny_per_h * gpus in template.price_milli_cny_per_h
    )


def _matches(host: AutodlHost, wanted: StockFilter) -> bool:
    return (
        (not wanted.gpu_names or host.gpu_name in wanted.gpu_names)
        and host.cuda_v in wanted.cuda_v
        and host.cpus_per_gpu in wanted.cpus
        and host.memory_gb_per_gpu in wanted.memory_gb
        and host.price_milli_cny_per_h in wanted.price_milli_cny_per_h
    )
