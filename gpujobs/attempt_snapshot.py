"""A machine's disk as an image: powered off, saved, written down."""

from gpujobs import teardown
from gpujobs.backends import Backend
from gpujobs.clock import StopToken
from gpujobs.errors import OverLimit
from gpujobs.ledger_rows import SnapshotRecord
from gpujobs.line import Line
from gpujobs.models import ImageRef, Machine
from gpujobs.renting import Job


def save_disk(job: Job, backend: Backend, line: Line) -> None:
    """Power off with the disk saved as an image, and wait until it is off; raises GpujobsError with the reason.

    A cancel ends the waiting: the machine is released whatever becomes of the image.
    """
    wanted, host = job.recipe.snapshot, job.host
    if wanted is None:
        return
    over_time = isinstance(line.stop.error, OverLimit)  # it stopped the work, and saving comes after that
    stop = StopToken() if over_time else line.stop
    stop.raise_if_stopped()
    line.hang_up()
    image = backend.power_off(line.machine, snapshot=ImageRef(name=wanted.name, tag=wanted.tag))

    def still_saving(seen: Machine) -> None:
        job.reporter.phase("snapshot", f"{line.machine.name}: {seen.raw_status}")

    deadline = host.clock.monotonic() + host.timing.snapshot_s
    teardown.wait_off(host, backend, line.machine, deadline=deadline, tick=still_saving, stop=stop)
    host.ledger.add_snapshot(
        SnapshotRecord(
            name=wanted.name,
            tag=wanted.tag,
            backend=backend.name,
            region=line.machine.region,
            image=image,
            run_id=job.run.id,
            made_at=host.clock.now(),
            state="saved",
        )
    )
    job.reporter.note(f"saved as snapshot:{wanted.name}:{wanted.tag} on {backend.name}")
