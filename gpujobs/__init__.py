"""Rent a GPU on MatrixDC or AutoDL, run a recipe or a function on it, bring the results home, switch it off."""

TYPE_CHECKING = False  # type checkers know the name and take it for true; the module typing is not paid for
if TYPE_CHECKING:
    from gpujobs.call_job import Job
    from gpujobs.decorators import gpu_job
    from gpujobs.fleet import Fleet

__all__ = ["Fleet", "Job", "gpu_job"]
_WHERE = {"Fleet": "gpujobs.fleet", "Job": "gpujobs.call_job", "gpu_job": "gpujobs.decorators"}


def __getattr__(name: str) -> object:
    """Bring a public name once it is asked for: `import gpujobs` alone costs nothing."""
    if name not in _WHERE:
        raise AttributeError(f"module 'gpujobs' has no attribute {name!r}")
    import importlib  # noqa: PLC0415 - as said

    return getattr(importlib.import_module(_WHERE[name]), name)
