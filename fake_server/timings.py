"""How long each transition of the fake clouds takes."""

import math
from dataclasses import dataclass
from typing import Literal

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
    matrixdc_wipe_s: float = 15 * 86400.0
    sshd_s: float = 0.2
    list_lag_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Guesses:
    """What the providers leave open and the fake had to decide. No client may depend on these.

    Attributes:
        job_replaces_stopped: a Job's container that the API stopped before its cmd ended is started anew.
        page_zero_is_first: AutoDL reads page_index 0 as the first page, else as a wrong parameter.
        unknown_fields: fields and query parameters that the documents do not name are ignored, or refused.
        unknown_path_status: the HTTP status of a path that an API does not have.
        wrong_method_status: the HTTP status of a method that a path does not take.
        autodl_error_status: the HTTP status that business errors come with.
        autodl_*_code: the business code of each kind of refusal.
        autodl_enterprise: the account is a verified enterprise; any other is refused everything.
        autodl_queues_without_stock: a deployment that no free host can carry now waits, else it is refused.
        autodl_packages_pay: a prepaid package of GPU hours pays for what it fits; else it is only shown.
        autodl_stock_shape: gpu_stock answers a list of one-key objects, as sampled, or one object.
        autodl_blacklist_shape: the blacklist is a list, as typed, or one object (null for none), as sampled.
        matrixdc_error_body: the JSON of a refusal: {"message"}, {"code", "msg"}, {"error"}, or a Kubernetes Status.
        matrixdc_list_limit: the most instances that one list shows, hasNextPage then being true; 0 is no limit.
        matrixdc_wipe: what is gone after matrixdc_wipe_s of being off: the data, or the instance with it.
        matrixdc_*_status: the HTTP status of each kind of refusal.
        matrixdc_power_on_reply: what power_on answers.
        matrixdc_price_per_cny: what a SKU's `price` counts, for one yuan an hour.
        matrixdc_unit_price_per_cny: what the annotation `unit-price` counts, for one yuan.
    """

    job_replaces_stopped: bool = True
    page_zero_is_first: bool = True
    unknown_fields: Literal["ignore", "refuse"] = "ignore"
    unknown_path_status: int = 404
    wrong_method_status: int = 405
    autodl_error_status: int = 200
    autodl_unauthorized_code: str = "AuthorizeFailed"
    autodl_bad_request_code: str = "RequestParameterIsWrong"
    autodl_not_found_code: str = "RecordNotFoundError"
    autodl_conflict_code: str = "BadRequest"
    autodl_no_stock_code: str = "InternalError"
    autodl_enterprise: bool = True
    autodl_queues_without_stock: bool = True
    autodl_packages_pay: bool = False
    autodl_stock_shape: Literal["list", "object"] = "list"
    autodl_blacklist_shape: Literal["list", "object"] = "list"
    matrixdc_error_body: Literal["message", "code_msg", "error", "kubernetes"] = "message"
    matrixdc_list_limit: int = 0
    matrixdc_wipe: Literal["data", "instance"] = "data"
    matrixdc_unauthorized_status: int = 401
    matrixdc_bad_request_status: int = 400
    matrixdc_not_found_status: int = 404
    matrixdc_conflict_status: int = 409
    matrixdc_no_stock_status: int = 400
    matrixdc_power_on_reply: str | None = "ok"
    matrixdc_price_per_cny: float = 1
    matrixdc_unit_price_per_cny: float = 100
