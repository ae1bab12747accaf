"""The blocks of gpujobs in Prefect: credentials with a provider, and a notification that goes anywhere.

`prefect block register -m gpujobs.blocks` makes them known to a server; every host does so as it starts. A recipe
names a block, and what the block holds is read by `prefect_blocks` where the run is driven.
"""

import logging

from prefect.blocks.core import Block
from prefect.blocks.notifications import AppriseNotificationBlock
from prefect.client.orchestration import PrefectClient
from pydantic import Field, SecretStr

_log = logging.getLogger(__name__)
_DEFAULT = "A block called gpujobs counts for every run whose host has no token of its own."


class AutoDLCredentials(Block):
    """An account with AutoDL."""

    _block_type_name = "AutoDL credentials"
    _block_type_slug = "autodl-credentials"
    _description = (
        f"An account with AutoDL, for recipes that name this block: credentials: {{autodl: NAME}}. {_DEFAULT}"
    )

    token: SecretStr = Field(
        description="The developer token: AutoDL console, settings. The elastic API needs enterprise verification."
    )
    api_url: str = Field(
        default="", title="API URL", description="The address of a private cloud; leave it empty for AutoDL itself."
    )


class MatrixDCCredentials(Block):
    """An account with MatrixDC."""

    _block_type_name = "MatrixDC credentials"
    _block_type_slug = "matrixdc-credentials"
    _description = (
        f"An account with MatrixDC, for recipes that name this block: credentials: {{matrixdc: NAME}}. {_DEFAULT}"
    )

    token: SecretStr = Field(description="The API token: MatrixDC console, API credentials.")
    namespace: str = Field(description="Your user id, which MatrixDC wants beside the token.")
    api_url: str = Field(
        default="", title="API URL", description="Another address, down to /mdc/api/v1; leave it empty for MatrixDC's."
    )
    price_scale: float = Field(
        default=1.0, gt=0, title="Price scale", description="CNY per hour for a price of 1, as MatrixDC states no unit."
    )


class Notification(AppriseNotificationBlock):
    """Whom a run's end is told, anywhere that Apprise reaches."""

    _block_type_name = "gpujobs notification"
    _block_type_slug = "gpujobs-notification"
    _description = (
        "Where a message goes when a run ends, for recipes that name this block, notify: [NAME]: "
        "WeChat Work, DingTalk, Feishu, Slack, e-mail and a hundred others, by Apprise URL."
    )

    url: SecretStr = Field(
        title="Apprise URL",
        description="wecombot://KEY, dingtalk://TOKEN, feishu://TOKEN, https://hooks.slack.com/services/…, mailto://…",
    )


async def register(client: PrefectClient) -> None:
    """Make the kinds of blocks known; a server that does not take them runs recipes all the same."""
    for kind in (AutoDLCredentials, MatrixDCCredentials, Notification):
        try:
            await kind.aregister_type_and_schema(client=client)
        except Exception as error:  # noqa: BLE001 - whatever it was, it is no reason to run nothing
            _log.warning("blocks of the kind %s are not known to the server: %s", kind.__name__, error)
