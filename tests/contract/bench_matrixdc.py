"""MatrixDC at its fake."""

from fake_server.server import FakeServer
from gpujobs.backends.matrixdc import DEFAULT_IMAGE, open_backend
from tests.contract.bench import Bench


def _take_all(server: FakeServer) -> None:
    with server.world.ground.lock:
        server.world.matrixdc.idle["4090"] = 0


BENCH = Bench(
    open=lambda account, clock: open_backend(account, clock=clock),
    gpu="RTX 4090",
    near_gpu=("H2O", "H20"),
    near_region=("host-clustr", "host-cluster"),
    near_image=None,
    image=DEFAULT_IMAGE,
    create="matrixdc.create_instance",
    reads=("matrixdc.list_regions", "matrixdc.list_skus", "matrixdc.list_instances", "matrixdc.get_instance"),
    saves=True,
    release="matrixdc.delete_instance",
    power_off="matrixdc.power_off",
    take_all=_take_all,
)
