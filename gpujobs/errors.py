"""Every error that gpujobs raises, named by how a caller reacts to it.

GpujobsError
├── BadInput                the user mends a file, a flag or a setting; nothing was rented        exit 2
│   └── BadCredentials      the provider refused the token                                       exit 2
├── ProviderError           a provider's answer
│   ├── Refused             it understood and said no: the same request will fail again           exit 2
│   │   ├── NoCapacity      nothing free now: try the next offer, or wait                         exit 3
│   │   └── NotFound        it does not know this id; for a release that is success               exit 2
│   ├── Unavailable         it cannot answer now: ask again later (carries retry_after_s)         exit 70
│   └── Ambiguous           the request may or may not have acted: look before asking again       exit 70
├── Unreachable             no SSH now: try again until the deadline                              exit 6
│   └── AuthRefused         the password or key is refused now (a machine may still be booting)   exit 6
├── HostKeyChanged          another machine answers at this address: never go on                  exit 6
├── RemoteFailure           a command of ours on the machine failed                               exit 70
│   └── Missing             the file or folder that was asked for is not there                    exit 70
├── TransferFailed          what arrived is not what was sent                                     exit 70
│   └── UnsafeArchive       what the machine sent must not be unpacked here                       exit 70
├── JobFailed               the recipe's own work failed                                          exit 1
│   ├── RemoteError         a function raised what cannot be made again here                      exit 1
│   ├── KilledRemotely      a function's process was ended by a signal                            exit 1
│   │   └── OutOfMemory     … because the machine's memory was used up                            exit 1
│   └── BadResult           what a function returned cannot come back, or is none                 exit 1
├── Cancelled               somebody asked to stop                                                exit 4
├── OverLimit               budget or time is used up                                             exit 5
├── MachineLost             the machine went away under the work                                  exit 6
│   └── BootTimeout         it was not reachable within its deadline                              exit 6
└── LetGo                   this process drives the run no longer; nothing of it is torn down     exit 70
    ├── Busy                another living process drives it                                      exit 70
    └── Detached            we were asked to leave it running                                     exit 0
"""

from typing import ClassVar


class GpujobsError(Exception):
    """Anything that gpujobs reports; `exit_code` is what the command ends with."""

    exit_code: ClassVar[int] = 70


class BadInput(GpujobsError):
    """The user mends a file, a flag or a setting; nothing was rented."""

    exit_code = 2


class BadCredentials(BadInput):
    """The provider refused the token."""


class ProviderError(GpujobsError):
    """A provider's answer that is not the one asked for."""


class Refused(ProviderError):
    """The provider understood and said no; the same request will fail again."""

    exit_code = 2


class NoCapacity(Refused):
    """Nothing that fits is free now."""

    exit_code = 3


class NotFound(Refused):
    """The provider does not know this id."""


class Unavailable(ProviderError):
    """The provider cannot answer now; ask again after `retry_after_s` (None: it did not say)."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        """Keep how long the provider asked us to wait, in seconds."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Ambiguous(ProviderError):
    """The request may have acted or not: search by name before another attempt."""


class Unreachable(GpujobsError):
    """No SSH connection now; try again until the deadline."""

    exit_code = 6


class AuthRefused(Unreachable):
    """The password or key is refused now; a machine that boots may accept it later."""


class HostKeyChanged(GpujobsError):
    """Another machine answers at this address."""

    exit_code = 6


class RemoteFailure(GpujobsError):
    """A command of gpujobs on the machine failed, or its answer is not one of ours."""


class Missing(RemoteFailure):
    """The file or folder that was asked for is not on the machine."""


class TransferFailed(GpujobsError):
    """What arrived is not what was sent."""


class UnsafeArchive(TransferFailed):
    """What the machine sent must not be unpacked here."""


class JobFailed(GpujobsError):
    """The recipe's own set-up or work failed."""

    exit_code = 1


class RemoteError(JobFailed):
    """A function on a machine raised what cannot be made again here; its text and traceback are all there is."""


class KilledRemotely(JobFailed):
    """A function's process on a machine was ended by a signal; `signal` is its number."""

    def __init__(self, message: str, *, signal: int = 0) -> None:
        """Keep the signal's number."""
        super().__init__(message)
        self.signal = signal


class OutOfMemory(KilledRemotely):
    """A function's process was ended because the machine's memory was used up."""


class BadResult(JobFailed):
    """What a function returned cannot come back by itself, or what came is no result."""


class Cancelled(GpujobsError):
    """Somebody asked the run to stop."""

    exit_code = 4


class FlowRunDeleted(Cancelled):
    """Somebody deleted the run's flow run in Prefect: it is cancelled, and nobody is there to be told of its end."""


class OverLimit(GpujobsError):
    """The run's budget or time is used up."""

    exit_code = 5


class MachineLost(GpujobsError):
    """The machine went away under the work."""

    exit_code = 6


class BootTimeout(MachineLost):
    """The machine was not reachable within its deadline."""


class LetGo(GpujobsError):
    """This process drives the run no longer; nothing of the run is torn down."""


class Busy(LetGo):
    """Another living process drives this run."""


class Detached(LetGo):
    """We were asked to leave the run to itself; whoever resumes it goes on."""

    exit_code = 0
