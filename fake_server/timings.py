"""How long each transition of the fake clouds takes."""

import math
from dataclasses import dataclass

MANUAL = math.inf
"""The length of a stage that is over when the control room says so, and not before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds of simulated time. The defaults are far quicker than the real clouds, whose figures nobody promises.

    0 is at once. MANUAL makes a stage wait for POST /_fake/advance (all but sshd_s and list_lag_s). list_lag_s is how
    long the lists of both clouds take to learn of what was created.
    """

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
    list_lag_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Guesses:
    """What the providers leave open and the fake had to decide. No client may depend on these.

    Attributes:
        job_replaces_stopped: a Job's container that the API stopped before its cmd ended is started anew.
        page_zero_is_first: AutoDL reads page_index 0 as the first page, else as a wrong parameter.
        matrixdc_*_status: the HTTP status of each kind of refusal.
        matrixdc_power_on_reply: what power_on answers.
        matrixdc_price_per_cny: what a SKU's `price` counts, for one yuan an hour.
        matrixdc_unit_price_per_cny: what the annotation `unit-price` counts, for one yuan.
    """

    job_replaces_stopped: bool = True
    page_zero_is_first: bool = True
    matrixdc_unauthorized_status: int = 401
    matrixdc_bad_request_status: int = 400
    matrixdc_not_found_status: int = 404
    matrixdc_conflict_status: int = 409
    matrixdc_no_stock_status: int = 400
    matrixdc_power_on_reply: str | None = "ok"
    matrixdc_price_per_cny: float = 1
    matrixdc_unit_price_per_cny: float = 100
