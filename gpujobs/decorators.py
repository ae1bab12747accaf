"""`@gpu_job` on a function: the same function, here or on a rented GPU machine."""

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, Unpack

from gpujobs.call_files import Call, write_call
from gpujobs.call_fit import return_hint
from gpujobs.call_job import Job, submit
from gpujobs.call_outcome import Wanted
from gpujobs.call_recipe import OURS, Keys, for_call, template
from gpujobs.call_source import find_source, is_importable, source_folder
from gpujobs.deploy import Deployed
from gpujobs.errors import BadInput
from gpujobs.fleet import Fleet
from gpujobs.fleet_results import Results
from gpujobs.models import Reporter
from gpujobs.prefect_api import POOL
from gpujobs.progress import TerminalReporter
from gpujobs.recipe import Recipe

if TYPE_CHECKING:
    from gpujobs.call_task import FlowFunction, TaskOptions

_P = ParamSpec("_P")
_R = TypeVar("_R")


def gpu_job(**keys: Unpack[Keys]) -> Callable[[Callable[_P, _R]], "GpuFunction[_P, _R]"]:
    """Let a function run on a rented GPU machine.

    Args:
        keys: those of a recipe, the ones under `resources` beside the others (`accelerators`, `infra`, `image`,
            `max_price`, `max_duration`, `budget`, `envs`, `secrets`, `setup`, `outputs`, …), and
            `workdir`, the folder that goes up (left out: the project's), `python`, the machine's interpreter (left out:
            conda's or python3), and `trust_remote`, which lets the result come as a pickle.

    Raises:
        BadInput: a keyword is none, or its value cannot be; every mistake is in the message.
    """

    def decorate(function: Callable[_P, _R]) -> GpuFunction[_P, _R]:
        return GpuFunction(function, keys)

    return decorate


class GpuFunction(Generic[_P, _R]):
    """A function with verbs: called, or by `local`, it runs here; by the others on a machine rented for the call."""

    __wrapped__: Callable[_P, _R]

    def __init__(self, function: Callable[_P, _R], keys: Keys) -> None:
        """Check the keywords; `gpu_job` is the usual way."""
        if not inspect.isfunction(function):
            raise BadInput(f"gpu_job goes on a function, not on {function!r}; write it below, over a def")
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise BadInput(f"gpu_job: {function.__qualname__} is async or yields; make it a function that returns")
        self._keys = keys
        self._common: Recipe = template(keys, name=function.__name__, folder=source_folder(function))
        functools.update_wrapper(self, function)

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run the function here."""
        return self.__wrapped__(*args, **kwargs)

    def local(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run the function here."""
        return self.__wrapped__(*args, **kwargs)

    def remote(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run it on a rented machine and wait for what it returns; what it writes is printed as it comes.

        Raises what the function raises (or RemoteError), and what `result` of the job from `submit` raises.
        Ctrl-C cancels the call and waits for its machine to be released; a second one leaves that to the reaper.
        In a Prefect flow it is a task run.
        """
        if _in_flow():
            return self.with_options()(*args, **kwargs)
        job = self._submitted(TerminalReporter(), *args, **kwargs)
        try:
            return job.result()
        except KeyboardInterrupt:
            job.cancel()
            job.wait_released()
            raise

    def submit(self, *args: _P.args, **kwargs: _P.kwargs) -> Job[_R]:
        """Run it on a rented machine in the background; raises BadInput before anything is rented.

        In a Prefect flow it is a task run, and what is given is Prefect's own future: type checkers, who cannot know
        where they are, see that with `with_options().submit`.
        """
        if _in_flow():
            return self.with_options().submit(*args, **kwargs)  # type: ignore[return-value]  # as said
        return self._submitted(None, *args, **kwargs)

    def with_options(self, **options: "Unpack[TaskOptions]") -> "FlowFunction[_P, _R]":
        """Give the function as Prefect's task, for use in a flow, with options of Prefect's `task`.

        Its `submit` and `map` give Prefect futures, of which type checkers know; calling it waits. Imports Prefect.
        """
        from gpujobs.call_task import Calls, FlowFunction  # noqa: PLC0415 - two seconds for those who use Prefect

        return FlowFunction(Calls(function=self.__wrapped__, begin=self._submitted, fleet=self._fleet), options)

    async def aremote(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Be `remote` for asyncio; cancelling the task cancels the call."""
        begin = functools.partial(self._submitted, TerminalReporter(), *args, **kwargs)
        job = await asyncio.get_running_loop().run_in_executor(None, begin)
        return await asyncio.wrap_future(job)

    def map(self, *iterables: Iterable[Any], machines: int = 1, return_exceptions: bool = False) -> Results[_R]:
        """Call it with each of the arguments on a fleet of `machines`; results come in order, as from the builtin map.

        The calls begin at once. With `return_exceptions`, what a call raised is given in its result's place.
        Raises BadInput as `Fleet` does, and TypeError where a call cannot take its arguments. In a Prefect flow each
        call is a task run, and what is given is a list of Prefect's futures, as with `with_options().map`.
        """
        if _in_flow():
            return self.with_options().map(*iterables, machines=machines)  # type: ignore[return-value]  # as said
        return self.starmap(zip(*iterables, strict=False), machines=machines, return_exceptions=return_exceptions)

    def starmap(
        self, calls: Iterable[Iterable[Any]], *, machines: int = 1, return_exceptions: bool = False
    ) -> Results[_R]:
        """Be as `map` with the arguments of each call already together, as in `itertools.starmap`."""
        if _in_flow():
            return self.with_options().starmap(calls, machines=machines)  # type: ignore[return-value]  # as said
        packed, signature = [tuple(one) for one in calls], inspect.signature(self.__wrapped__)
        for one in packed:
            signature.bind(*one)
        fleet = self._fleet(machines, None)
        submit_one: Callable[..., Future[_R]] = functools.partial(fleet.submit, self)
        try:
            futures = [submit_one(*one) for one in packed]
        except BaseException:
            fleet.cancel()
            raise
        fleet.shutdown(wait=False)
        return Results(fleet, futures, return_exceptions=return_exceptions)

    def deploy(
        self, name: str = "", *, cron: str | None = None, timezone: str | None = None, pool: str = POOL
    ) -> Deployed:
        """Make a deployment of it in Prefect, whose form asks for its arguments; the same again changes nothing.

        The folder that goes up must be where the pool's hosts are. Imports Prefect.

        Args:
            name: the deployment's; left out: the function's.
            cron: when it runs by itself, as "0 2 * * *"; needs a default for each parameter.
            timezone: of the cron line; left out: Asia/Shanghai.
            pool: the work pool: that of `gpujobs serve`, or one of type process.

        Raises:
            BadInput: the function has no name to be imported by, a parameter cannot be in a form, or a word is wrong.
        """
        from gpujobs.call_deploy import deploy  # noqa: PLC0415 - as above

        schedule = {key: value for key, value in (("cron", cron), ("timezone", timezone)) if value is not None}
        return deploy(self.__wrapped__, self._common, self._keys, name=name, schedule=schedule, pool=pool)

    @cached_property
    def wanted(self) -> Wanted:
        """What is expected of a result: the function's own type hint, and whether a pickle is taken."""
        return Wanted(hint=return_hint(self.__wrapped__), trust_remote=self._keys.get("trust_remote", False))

    def __reduce__(self) -> Any:
        """Go to a machine by name, or where it has none as the function itself."""
        if is_importable(self.__wrapped__):
            return self.__wrapped__.__qualname__
        return functools.partial, (self.__wrapped__,)

    def _fleet(self, machines: int, reporter: Reporter | None) -> Fleet:
        ours: dict[str, Any] = {key: value for key, value in self._keys.items() if key in OURS}
        return Fleet(self._common, machines=machines, reporter=reporter, **ours)

    def _submitted(self, reporter: Reporter | None, *args: _P.args, **kwargs: _P.kwargs) -> Job[_R]:
        inspect.signature(self.__wrapped__).bind(*args, **kwargs)  # a TypeError, as a call here would raise
        source = find_source(self.__wrapped__, workdir=self._keys.get("workdir"))
        trust = self._keys.get("trust_remote", False)

        def recipe_in(folder: Path) -> Recipe:
            call = Call(function=self.__wrapped__, args=args, kwargs=kwargs)
            write_call(folder, call, source, trust_remote=trust)
            return for_call(self._common, workdir=source.workdir, files=folder, python=self._keys.get("python", ""))

        return submit(recipe_in, wanted=self.wanted, reporter=reporter)


def _in_flow() -> bool:
    """Say whether this is in a Prefect flow, without importing what nobody has imported."""
    context = sys.modules.get("prefect.context")
    return context is not None and context.FlowRunContext.get() is not None
