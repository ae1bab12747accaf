"""Both fake clouds for a Python test: as a context manager, as a decorator, and behind the pytest fixture."""

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from fake_server.faults import KINDS, FaultRule
from fake_server.rows import CallRow, Ledger, State
from fake_server.server import FakeServer

_Result = TypeVar("_Result")


class FakeCloud:
    """AutoDL and MatrixDC on a loopback port of this process, with machines that answer over SSH.

    As a context manager it starts on entering and leaves nothing behind; `with FakeCloud() as cloud`. As a decorator of
    a function, plain or async, it gives every call a cloud of its own, sets the clients' environment variables for as
    long as the call lasts, and passes itself as `cloud` to a function that has a parameter of that name.

    Args:
        environment: set AUTODL_TOKEN, AUTODL_API_URL, MATRIXDC_TOKEN, MATRIXDC_NAMESPACE and MATRIXDC_API_URL in
            os.environ while it runs.
        options: those of FakeServer: speed, seed, state, token, namespace, timings, guesses and the others.
    """

    def __init__(self, *, environment: bool = False, **options: Any) -> None:
        self._environment = environment
        self._options = options
        self._until_exit = ExitStack()
        self.server = FakeServer(**options)

    def __enter__(self) -> Self:
        self._until_exit.enter_context(self.server)
        if self._environment:
            self._until_exit.enter_context(_environment(self.env()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._until_exit.close()

    def __call__(self, function: Callable[..., _Result]) -> Callable[..., _Result]:
        """Decorate a function; each call of it has a fresh cloud."""
        signature = inspect.signature(function)
        wanted = "cloud" in signature.parameters

        def given(cloud: FakeCloud) -> dict[str, FakeCloud]:
            return {"cloud": cloud} if wanted else {}

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                with self._fresh() as cloud:
                    return await function(*args, **given(cloud), **kwargs)
        else:

            @functools.wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with self._fresh() as cloud:
                    return function(*args, **given(cloud), **kwargs)

        # a test runner that fills parameters by name leaves this one alone
        left = [each for name, each in signature.parameters.items() if name != "cloud"]
        wrapper.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return cast("Callable[..., _Result]", wrapper)

    @property
    def url(self) -> str:
        """The origin of everything."""
        return self.server.url

    @property
    def autodl_url(self) -> str:
        """The base URL of AutoDL's API, without /api/v1/dev."""
        return self.server.autodl_url

    @property
    def matrixdc_url(self) -> str:
        """The base URL of MatrixDC's API, down to /mdc/api/v1."""
        return self.server.matrixdc_url

    @property
    def token(self) -> str:
        """The API token of both clouds."""
        return self.server.token

    @property
    def namespace(self) -> str:
        """MatrixDC's namespace, which is its user id."""
        return self.server.namespace

    @property
    def control_token(self) -> str:
        """What the control room over HTTP wants in X-Fake-Control."""
        return self.server.control_token

    def env(self) -> dict[str, str]:
        """Return the environment variables that point a client here."""
        return self.server.env()

    def advance(self, seconds: float) -> float:
        """Move the clock forward, with all that falls due on the way; return the new time."""
        if seconds < 0:
            raise ValueError("the clock goes forward only")
        timeline = self.server.world.ground.timeline
        timeline.advance(seconds)
        return timeline.now()

    def set_speed(self, speed: float) -> None:
        """Run at so many simulated seconds a real second; 0 is a clock that only `advance` moves."""
        if speed < 0:
            raise ValueError("a speed is 0 or more")
        self.server.world.ground.timeline.set_speed(speed)

    def set_timings(self, **seconds: float | str) -> dict[str, Any]:
        """Change how long stages take, by their names in Timings: seconds, 0 for at once, or "manual"; return all."""
        return self.server.world.set_timings(seconds)

    def let_go(self, machine: str = "*", stage: str = "*") -> list[dict[str, str]]:
        """Let machines that wait in a manual stage (or are stuck in one) go on; return which did. Names or patterns."""
        ground = self.server.world.ground
        with ground.lock:
            return ground.stages.advance(machine, stage)

    def fault(self, kind: str, endpoint: str | None = None, **details: Any) -> int:
        """Arm a fault and return its id; ValueError, in words, for one that cannot work.

        Args:
            kind: one of those that `GET /_fake/faults` explains, such as "lost_reply".
            endpoint: for faults of calls: a published name or a pattern, "autodl.create_deployment", "matrixdc.*"; by
                default all calls, or those that this kind is about.
            details: what else a rule may say: machine, after, count, seconds, probability, seed and so on.
        """
        if endpoint is None and kind in KINDS and KINDS[kind].layer == "call":
            endpoint = KINDS[kind].endpoint or "*"
        where = {} if endpoint is None else {"endpoint": endpoint}
        return self.server.faults.add(FaultRule.model_validate({"kind": kind, **where, **details}))

    def clear_faults(self, fault_id: int | None = None) -> None:
        """Disarm one fault, or all."""
        self.server.faults.remove(fault_id)

    def stock(self, gpu: str, idle: int, *, region: str = "") -> None:
        """Let other tenants take or leave AutoDL's GPUs until so many are free on each host of that kind."""
        world = self.server.world
        with world.ground.lock:
            world.autodl.set_idle(gpu, region, idle)

    def ledger(self) -> Ledger:
        """Return the truth, which no API call reads."""
        return cast("Ledger", self.server.world.ledger())

    def calls(self) -> list[CallRow]:
        """Return the latest API calls (10,000 at most), oldest first."""
        ground = self.server.world.ground
        with ground.lock:
            return ground.call_log.latest()

    def state(self) -> State:
        """Return what is going on now."""
        return self.server.world.state()

    def reset(self) -> None:
        """End every machine and begin a new, empty world at the same address."""
        self.server.reset()

    def _fresh(self) -> "FakeCloud":
        return FakeCloud(environment=True, **self._options)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
