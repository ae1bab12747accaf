"""What the fake clouds rent out: regions, hosts, images, prices. Names are the API documents', amounts invented."""

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU model as nvidia-smi shows it."""

    smi_name: str
    memory_mb: int


GPUS: dict[str, Gpu] = {
    "RTX 4090": Gpu(smi_name="NVIDIA GeForce RTX 4090", memory_mb=24564),
    "RTX 3090": Gpu(smi_name="NVIDIA GeForce RTX 3090", memory_mb=24576),
    "RTX 3080 Ti": Gpu(smi_name="NVIDIA GeForce RTX 3080 Ti", memory_mb=12288),
    "RTX A4000": Gpu(smi_name="NVIDIA RTX A4000", memory_mb=16376),
    "TITAN Xp": Gpu(smi_name="NVIDIA TITAN Xp", memory_mb=12288),
    "Tesla V100-SXM2-32GB": Gpu(smi_name="Tesla V100-SXM2-32GB", memory_mb=32768),
    "L20": Gpu(smi_name="NVIDIA L20", memory_mb=46068),
    "H800": Gpu(smi_name="NVIDIA H800", memory_mb=81559),
    "H20": Gpu(smi_name="NVIDIA H20", memory_mb=97871),
    "A100": Gpu(smi_name="NVIDIA A100-SXM4-80GB", memory_mb=81920),
    "4090": Gpu(smi_name="NVIDIA GeForce RTX 4090", memory_mb=24564),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AutodlHost:
    """One AutoDL host. CPU, memory and price are per GPU; cuda_v 124 means a driver for CUDA up to 12.4."""

    machine_id: str
    data_center: str
    gpu_name: str
    gpu_count: int
    taken_by_others: int
    cpus_per_gpu: int
    memory_gb_per_gpu: int
    cuda_v: int
    price_milli_cny_per_h: int


# data centre: (GPU, hosts, GPUs a host, taken by other tenants on each, CPUs, GB, CUDA, milli-CNY an hour)
_AUTODL: dict[str, tuple[tuple[str, int, int, int, int, int, int, int], ...]] = {
    "westDC2": (
        ("RTX 4090", 6, 8, 2, 16, 120, 124, 1980),
        ("RTX 3080 Ti", 2, 8, 4, 12, 43, 118, 980),
        ("RTX A4000", 1, 4, 2, 8, 30, 122, 860),
        ("TITAN Xp", 1, 4, 1, 4, 15, 117, 690),
    ),
    "westDC3": (("RTX 4090", 3, 8, 3, 16, 120, 128, 2080), ("RTX 3090", 1, 8, 2, 14, 80, 122, 1480)),
    "beijingDC1": (("RTX 3090", 2, 8, 5, 14, 80, 118, 1580), ("A100", 1, 8, 6, 16, 120, 122, 5980)),
    "beijingDC2": (("RTX 4090", 2, 8, 4, 12, 90, 124, 2180), ("RTX A4000", 1, 4, 0, 8, 30, 118, 920)),
    "beijingDC3": (("Tesla V100-SXM2-32GB", 3, 8, 2, 10, 60, 118, 1880),),
    "beijingDC4": (("L20", 2, 8, 3, 20, 100, 124, 3280),),
    "neimengDC1": (("RTX 4090", 1, 8, 1, 16, 120, 128, 1890), ("H800", 1, 8, 8, 20, 200, 128, 8880)),
    "neimengDC3": (("H800", 1, 8, 4, 20, 200, 124, 9880), ("H20", 1, 8, 2, 22, 180, 128, 5480)),
    "foshanDC1": (("RTX 3080 Ti", 1, 8, 3, 12, 43, 122, 1080),),
    "chongqingDC1": (("RTX 4090", 1, 8, 2, 16, 120, 122, 1960), ("RTX 3090", 1, 4, 4, 14, 80, 118, 1380)),
    "yangzhouDC1": (("RTX 3090", 4, 8, 3, 14, 80, 124, 1450),),
}

AUTODL_REGIONS = tuple(_AUTODL)
AUTODL_USER_ID = "58"


@cache
def autodl_hosts() -> tuple[AutodlHost, ...]:
    """Return all AutoDL hosts; their ids are the same in every fake."""
    rows = [(region, *row) for region, gpus in _AUTODL.items() for row in gpus]
    hosts: list[AutodlHost] = []
    for region, gpu, host_count, gpu_count, taken, cpus, memory_gb, cuda_v, price in rows:
        for _ in range(host_count):
            serial = len(hosts) + 1
            hosts.append(
                AutodlHost(
                    machine_id=f"{serial * 0x9E3779B97F % 0x10000000000:010x}",
                    data_center=region,
                    gpu_name=gpu,
                    gpu_count=gpu_count,
                    taken_by_others=taken,
                    cpus_per_gpu=cpus,
                    memory_gb_per_gpu=memory_gb,
                    cuda_v=cuda_v,
                    price_milli_cny_per_h=price,
                )
            )
    return tuple(hosts)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateImage:
    """An image that the account saved on AutoDL's web site; the API has no way to save one."""

    id: int
    uuid: str
    name: str
    created_at: float


AUTODL_PRIVATE_IMAGES = (
    PrivateImage(id=111, uuid="image-db8346e037", name="image name", created_at=1642674848.0),
    PrivateImage(id=112, uuid="image-5f1b9c2a7d", name="digits-env", created_at=1698744000.0),
)

# the document's appendix; base-image-l2t43iu6uk stands in it twice
AUTODL_BASE_IMAGES: dict[str, str] = {
    "base-image-12be412037": "cuda11.1-cudnn8-devel-ubuntu18.04-py38-torch1.9.0",
    "base-image-u9r24vthlk": "cuda11.3-cudnn8-devel-ubuntu20.04-py38-torch1.10.0",
    "base-image-l374uiucui": "cuda11.3-cudnn8-devel-ubuntu20.04-py38-torch1.11.0",
    "base-image-l2t43iu6uk": "cuda11.8-cudnn8-devel-ubuntu20.04-py38-torch2.0.0",
    "base-image-0gxqmciyth": "cuda11.2-cudnn8-devel-ubuntu18.04-py38-tf2.5.0",
    "base-image-uxeklgirir": "cuda11.2-cudnn8-devel-ubuntu20.04-py38-tf2.9.0",
    "base-image-4bpg0tt88l": "cuda11.4-py38-tf1.15.5",
    "base-image-mbr2n4urrc": "cuda11.6-cudnn8-devel-ubuntu20.04-py38",
    "base-image-qkkhitpik5": "cuda10.2-cudnn7-devel-ubuntu18.04-py38",
    "base-image-h041hn36yt": "cuda11.1-cudnn8-devel-ubuntu18.04-py38",
    "base-image-7bn8iqhkb5": "cudagl11.3-cudnn8-devel-ubuntu20.04-py38",
    "base-image-k0vep6kyq8": "cuda9.0-cudnn7-devel-ubuntu16.04-py36",
    "base-image-l2843iu23k": "cuda11.8-cudnn8-devel-ubuntu20.04-py38-trt8.5.1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepaidHours:
    """A bought package of GPU hours, shown by ddp/overview."""

    gpu_type: str
    total_s: int
    balance_s: int
    data_centers: tuple[str, ...]


AUTODL_PREPAID = (
    PrepaidHours(gpu_type="RTX 4090", total_s=86400, balance_s=83829, data_centers=("westDC2", "westDC3")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixdcRegion:
    """A MatrixDC region; it has one cluster."""

    id: str
    name: str
    cluster_name: str
    harbor_addr: str
    howler_id: str
    created_at: str


MATRIXDC_REGION = MatrixdcRegion(
    id="14c5a9e3-0d09-4aa0-99d3-c096b80cceaa",
    name="北京一区",
    cluster_name="host-cluster",
    harbor_addr="images.neolink-ai.com",
    howler_id="69e377a7-99d1-cca0-ef58-cfce14a336b2",
    created_at="2024-07-15T12:00:23.227+08:00",
)
MATRIXDC_PUBLIC_PROJECT = "matrixdc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sku:
    """A MatrixDC machine size. price_cny is per hour, day, week or month, as selling_type says (1, 4, 3, 2)."""

    id: str
    gpu: str
    gpu_count: int
    gpu_memory_gb: int
    cpus: int
    memory_gb: int
    price_cny: float
    ratio: float
    selling_type: str = "1"


MATRIXDC_COUPONS: dict[str, float] = {"coupon-100": 100.0, "coupon-1": 1.0}
"""What the account's coupons are worth, in CNY; the document gives them no call of their own."""

MATRIXDC_GPUS: dict[str, int] = {"H20": 16, "4090": 16, "A100": 2, "H800": 0}
"""GPUs of each kind that the account can rent, shared by all sizes of that kind."""

MATRIXDC_SKUS: tuple[Sku, ...] = (
    Sku(id="2", gpu="H20", gpu_count=1, gpu_memory_gb=96, cpus=24, memory_gb=192, price_cny=10, ratio=0.48),
    Sku(id="3", gpu="H20", gpu_count=2, gpu_memory_gb=96, cpus=48, memory_gb=384, price_cny=20, ratio=0.48),
    Sku(id="4", gpu="H20", gpu_count=4, gpu_memory_gb=96, cpus=96, memory_gb=768, price_cny=40, ratio=0.48),
    Sku(id="5", gpu="H20", gpu_count=8, gpu_memory_gb=96, cpus=192, memory_gb=1536, price_cny=80, ratio=0.48),
    Sku(id="66", gpu="4090", gpu_count=1, gpu_memory_gb=24, cpus=16, memory_gb=96, price_cny=2.5, ratio=1),
    Sku(id="67", gpu="4090", gpu_count=2, gpu_memory_gb=24, cpus=32, memory_gb=192, price_cny=5, ratio=1),
    Sku(id="68", gpu="4090", gpu_count=4, gpu_memory_gb=24, cpus=64, memory_gb=384, price_cny=10, ratio=1),
    Sku(id="69", gpu="4090", gpu_count=8, gpu_memory_gb=24, cpus=128, memory_gb=768, price_cny=20, ratio=1),
    Sku(
        id="70", gpu="4090", gpu_count=1, gpu_memory_gb=24, cpus=16, memory_gb=96, price_cny=1200, ratio=1,
        selling_type="2",
    ),
    Sku(
        id="71", gpu="4090", gpu_count=1, gpu_memory_gb=24, cpus=16, memory_gb=96, price_cny=320, ratio=1,
        selling_type="3",
    ),
    Sku(
        id="72", gpu="4090", gpu_count=1, gpu_memory_gb=24, cpus=16, memory_gb=96, price_cny=50, ratio=1,
        selling_type="4",
    ),
    Sku(id="80", gpu="A100", gpu_count=1, gpu_memory_gb=80, cpus=16, memory_gb=120, price_cny=7.5, ratio=0.8),
    Sku(id="81", gpu="A100", gpu_count=2, gpu_memory_gb=80, cpus=32, memory_gb=240, price_cny=15, ratio=0.8),
    Sku(id="90", gpu="H800", gpu_count=1, gpu_memory_gb=80, cpus=20, memory_gb=200, price_cny=12, ratio=0.6),
)  # fmt: skip
