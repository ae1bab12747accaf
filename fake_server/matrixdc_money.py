"""How MatrixDC sells time ahead: CostType 2 by months, 3 by weeks, 4 by days."""

import re

from fake_server.refusal import Reason, Refused

_SECONDS = {"D": 86400, "W": 7 * 86400, "M": 30 * 86400}
_UNIT_OF_TYPE = {"2": "M", "3": "W", "4": "D"}
_COST_TIME = re.compile(r"([1-9][0-9]{0,3})([DWM])")


def is_prepaid(cost_type: str) -> bool:
    """Say whether such an instance is paid ahead, not by use."""
    return cost_type in _UNIT_OF_TYPE


def periods(cost_type: str, cost_time: str) -> tuple[int, float]:
    """Return the periods bought and their length in seconds; Refused unless the unit is the cost type's own."""
    bought = _COST_TIME.fullmatch(cost_time)
    if bought is None or bought[2] != _UNIT_OF_TYPE.get(cost_type):
        raise Refused(Reason.BAD_REQUEST, f"CostTime 不合法: {cost_time}")
    return int(bought[1]), int(bought[1]) * _SECONDS[bought[2]]
