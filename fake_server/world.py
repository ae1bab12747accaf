"""One fake world: both clouds, their clock, their containers, and the truth about them. No HTTP here."""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fake_server.autodl_rules import AutodlCloud
from fake_server.containers import Containers
from fake_server.fault_rules import Rules
from fake_server.ground import Ground
from fake_server.matrixdc_rules import MatrixdcCloud
from fake_server.saved import Keeper
from fake_server.stages import changed_timings, timings_as_json
from fake_server.store import Store
from fake_server.timings import Guesses, Timings

_REBOOT_S = 60.0
_SAVE_S = 0.05


class World:
    """Rules and clock of both clouds. Calls on `autodl` and `matrixdc` are made with `ground.lock` held."""

    def __init__(
        self,
        folder: Path,
        *,
        speed: float = 1.0,
        seed: int | None = None,
        timings: Timings | None = None,
        guesses: Guesses | None = None,
        namespace: str = "fake-user",
        containers: Callable[..., Containers] = Containers,
        rules: Rules | None = None,
        disk_gb: float = 30.0,
        store: Store | None = None,
    ) -> None:
        self._keeper = Keeper(store) if store is not None else None
        lives = self._keeper.lives if self._keeper else 1
        self.ground = Ground(
            folder=folder,
            start_at=self._keeper.start_at() if self._keeper else time.time(),
            speed=speed,
            seed=seed if lives == 1 else _seed_of_life(seed, lives),
            timings=timings or Timings(),
            guesses=guesses or Guesses(),
            containers=containers,
            rules=rules or Rules(),
            disk_gb=disk_gb,
        )
        self.autodl = AutodlCloud(self.ground)
        self.matrixdc = MatrixdcCloud(self.ground, namespace=namespace)
        self._unwatch = self.ground.rules.watch(self._rules_changed)
        self._ended = threading.Event()
        self._saver = threading.Thread(target=self._keep_saving, name="fake-saver", daemon=True)
        if self._keeper:
            self._go_on(self._keeper)
        self.ground.timeline.start()

    def close(self) -> None:
        """Kill every container and end the clock; what the world was stays in its state folder."""
        self._unwatch()
        self._ended.set()
        if self._saver.is_alive():
            self._saver.join()
        self.ground.close()
        if self._keeper:
            self.save()
            self._keeper.close()
            self._keeper = None

    def save(self) -> None:
        """Write down what has changed, where there is a state folder; called before anybody is answered."""
        if self._keeper:
            with self.ground.lock:
                if self._keeper:
                    self._keeper.save(self)

    def _go_on(self, keeper: Keeper) -> None:
        with self.ground.lock:
            keeper.load(self)
        self.ground.settle(_REBOOT_S)
        self._saver.start()

    def _keep_saving(self) -> None:
        seen = self.ground.stirrings
        while not self._ended.wait(_SAVE_S):
            if self.ground.stirrings != seen:
                seen = self.ground.stirrings
                self.save()

    def later(self, seconds: float, action: Callable[[], Any]) -> None:
        """Do something so many simulated seconds from now, on a thread of its own."""

        def begin() -> None:
            threading.Thread(target=action, name="fake-late-act", daemon=True).start()

        self.ground.timeline.after(seconds, begin)

    def set_timings(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Change how long stages take, in seconds or to "manual"; return all timings. What waits no longer goes on."""
        with self.ground.lock:
            self.ground.timings = changed_timings(self.ground.timings, changes)
            self.ground.stages.reconsider()
            return timings_as_json(self.ground.timings)

    def _rules_changed(self) -> None:
        with self.ground.lock:
            self.ground.stages.reconsider()
            self.ground.mortals.reconsider()
            self.autodl.refill()

    def state(self) -> dict[str, Any]:
        """Return what is going on now."""
        isolation = self.ground.containers.isolation
        with self.ground.lock:
            now = self.ground.timeline.now()
            self.autodl.packages.settle(now)
            return {
                "isolation": isolation,
                "safe": isolation != "none",
                "now": now,
                "speed": self.ground.timeline.speed,
                "machines": [machine.as_json(now) for machine in self.ground.truth.alive()],
                "deployments": self.autodl.summary(),
                "images": sorted(self.matrixdc.images),
                "stock": {"autodl": self.autodl.fleet.idle_by_region(), "matrixdc": dict(self.matrixdc.idle)},
                "timings": timings_as_json(self.ground.timings),
                "guesses": asdict(self.ground.guesses),
                "waiting": self.ground.stages.waiting(),
            }

    def ledger(self) -> dict[str, Any]:
        """Return the truth: every machine ever made, and how often each endpoint was called."""
        with self.ground.lock:
            now = self.ground.timeline.now()
            self.autodl.packages.settle(now)
            return {"now": now, "machines": self.ground.truth.as_json(now), "calls": dict(self.ground.calls)}


def _seed_of_life(seed: int | None, lives: int) -> int | None:
    """Return another seed for each start on the same folder, or ids would come a second time."""
    return None if seed is None else hash((seed, lives))
