"""When a recipe runs by itself."""

import difflib
from datetime import UTC, datetime
from typing import Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import Field, field_validator

from gpujobs.recipe_types import Seconds, Strict, Word

MAX_LATENESS_S = 3600
_CRON_FIELDS = 5


class Schedule(Strict):
    """When a deployment of this recipe runs by itself, and which of its runs are skipped."""

    cron: Word = Field(
        description="Minute, hour, day, month, day of the week, as cron has them", examples=["0 2 * * *"]
    )
    timezone: Word = Field(default="Asia/Shanghai", description="Of the cron line", examples=["Asia/Shanghai"])
    if_running: Literal["skip"] = Field(
        default="skip", description="What a run does that is due while the one before it lives", examples=["skip"]
    )
    max_lateness: Seconds = Field(
        default=MAX_LATENESS_S,
        gt=0,
        json_schema_extra={"default": "1h"},
        description="A scheduled run that starts later than this is skipped",
        examples=["1h"],
    )

    @field_validator("cron")
    @classmethod
    def _cron(cls, value: str) -> str:
        from cronsim import CronSim, CronSimError  # noqa: PLC0415 - few recipes have a schedule

        if len(value.split()) != _CRON_FIELDS:
            raise ValueError(f'{value!r} is not a cron line of five fields; write it quoted, as "0 2 * * *"')
        try:
            CronSim(value, datetime.now(UTC))
        except CronSimError as error:
            field = str(error).removeprefix("Bad ")
            raise ValueError(f'{value!r} has a wrong {field}; write it as "0 2 * * *", each day at 2:00') from error
        return value

    @field_validator("timezone")
    @classmethod
    def _timezone(cls, value: str) -> str:
        known = available_timezones()  # empty where the system keeps no zones
        if known and value not in known:
            near = difflib.get_close_matches(value, known, n=1, cutoff=0.5) or ["Asia/Shanghai"]
            raise ValueError(f"{value!r} is not a time zone; did you mean {near[0]}?")
        return value

    def next_after(self, moment: datetime) -> datetime:
        """Give the next time that it is due after `moment` (aware), in its own time zone."""
        from cronsim import CronSim  # noqa: PLC0415 - few recipes have a schedule

        return next(CronSim(self.cron, moment.astimezone(ZoneInfo(self.timezone))))
