"""Why a cloud refuses a call, in the rules' own words; each wire dialect has its table of replies."""

from enum import Enum


class Reason(Enum):
    """The kinds of refusal."""

    BAD_REQUEST = "bad request"
    NOT_FOUND = "not found"
    CONFLICT = "conflict"
    NO_STOCK = "no stock"


class Refused(Exception):
    """A cloud's "no"."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
