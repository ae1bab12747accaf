"""How long each transition of the fake clouds takes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds of simulated time. The defaults are far quicker than the real clouds, whose figures nobody promises."""

    autodl_queued_s: float = 0.1
    autodl_creating_s: float = 0.2
    autodl_created_s: float = 0.05
    autodl_starting_s: float = 0.1
    autodl_shutting_down_s: float = 0.2
    autodl_replace_s: float = 0.2
    autodl_settle_s: float = 0.2
    matrixdc_creating_s: float = 0.45
    matrixdc_starting_s: float = 0.3
    matrixdc_shutting_down_s: float = 0.3
    matrixdc_snapshot_s: float = 0.3
    matrixdc_deleting_s: float = 0.3
    sshd_s: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Guesses:
    """What the providers leave open and the fake had to decide. No client may depend on these."""

    job_replaces_stopped: bool = True
    """A Job's container that the API stopped before its cmd ended is started anew, as Kubernetes does."""

    matrixdc_no_stock_status: int = 400
    """HTTP status of a MatrixDC create that finds no free GPU."""
