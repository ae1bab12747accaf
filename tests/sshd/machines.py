"""What the tests know of a machine that they talk to."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpujobs.models import Access
from gpujobs.shell import Shell, Timeouts, connect
from tests.sshd.openssh import why_not

PASSWORD = "correct horse battery staple"
QUICK = Timeouts(probe_every_s=0.2, dead_after_s=1.5, connect_s=3, banner_s=3, handshake_s=10, auth_s=10, channel_s=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One machine, whichever kind it is."""

    kind: str
    access: Access
    host_key: str
    key: Path | None
    home: str

    def connect(self, *, port: int | None = None, timeouts: Timeouts | None = None) -> Shell:
        return connect(self.at(port), host_key=self.host_key, pkey_path=self.key, timeouts=timeouts)

    def at(self, port: int | None) -> Access:
        known = self.access
        return Access(host=known.host, port=port or known.port, user=known.user, password=known.password)


def skip_without_sshd() -> None:
    if reason := why_not():
        warnings.warn(pytest.PytestWarning(reason), stacklevel=2)
        pytest.skip(reason)
