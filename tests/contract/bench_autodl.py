"""AutoDL at its fake."""

from fake_server.server import FakeServer
from gpujobs.backends.autodl import open_backend
from tests.contract.bench import Bench


def _take_all(server: FakeServer) -> None:
    with server.world.ground.lock:
        server.world.autodl.fleet.hosts = tuple(
            host for host in server.world.autodl.fleet.hosts if host.gpu_name != "RTX A4000"
        )


BENCH = Bench(
    open=lambda account, clock: open_backend(account, clock=clock),
    gpu="RTX A4000",
    near_gpu=("RTX 4099", "RTX 4090"),
    near_region=("westDC22", "westDC2"),
    near_image=("digits-enw", "digits-env"),
    image="base-image-l2t43iu6uk",
    create="autodl.create_deployment",
    reads=("autodl.list_deployments", "autodl.list_events", "autodl.list_containers", "autodl.gpu_stock"),
    saves=False,
    release="autodl.delete_deployment",
    power_off="autodl.operate_deployment",
    take_all=_take_all,
)
