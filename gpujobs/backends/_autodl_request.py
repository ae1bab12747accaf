"""What AutoDL is asked for: the body of a create, and the image in it."""

import math
from collections.abc import Mapping
from typing import Any

from gpujobs.backends._autodl_stock import CNY, PRICE_CAP_PER_GPU, PRICE_FROM, ranges, region_sign
from gpujobs.backends._autodl_wire import AutoDLClient
from gpujobs.backends._reading import nearest
from gpujobs.errors import BadInput, Refused, Unavailable
from gpujobs.models import Offer
from gpujobs.recipe import Recipe
from gpujobs.remote import keeper_command

# Appendix 2 of the API document.
BASE_IMAGES = {
    "base-image-12be412037": "PyTorch, cuda11.1-cudnn8-devel-ubuntu18.04-py38-torch1.9.0",
    "base-image-u9r24vthlk": "PyTorch, cuda11.3-cudnn8-devel-ubuntu20.04-py38-torch1.10.0",
    "base-image-l374uiucui": "PyTorch, cuda11.3-cudnn8-devel-ubuntu20.04-py38-torch1.11.0",
    "base-image-l2t43iu6uk": "PyTorch, cuda11.8-cudnn8-devel-ubuntu20.04-py38-torch2.0.0",
    "base-image-0gxqmciyth": "TensorFlow, cuda11.2-cudnn8-devel-ubuntu18.04-py38-tf2.5.0",
    "base-image-uxeklgirir": "TensorFlow, cuda11.2-cudnn8-devel-ubuntu20.04-py38-tf2.9.0",
    "base-image-4bpg0tt88l": "TensorFlow, cuda11.4-py38-tf1.15.5",
    "base-image-mbr2n4urrc": "Miniconda, cuda11.6-cudnn8-devel-ubuntu20.04-py38",
    "base-image-qkkhitpik5": "Miniconda, cuda10.2-cudnn7-devel-ubuntu18.04-py38",
    "base-image-h041hn36yt": "Miniconda, cuda11.1-cudnn8-devel-ubuntu18.04-py38",
    "base-image-7bn8iqhkb5": "Miniconda, cudagl11.3-cudnn8-devel-ubuntu20.04-py38",
    "base-image-k0vep6kyq8": "Miniconda, cuda9.0-cudnn7-devel-ubuntu16.04-py36",
    "base-image-l2843iu23k": "TensorRT, cuda11.8-cudnn8-devel-ubuntu20.04-py38-trt8.5.1",
}
DEFAULT_IMAGE = "base-image-l2t43iu6uk"
BOOT_GRACE_S = 1800  # a container on which no job has started by then ends itself


def deployment_body(recipe: Recipe, offer: Offer, *, name: str, image: str, count: int, base: str) -> Mapping[str, Any]:
    """Write the body of a create; its `cmd` keeps the container alive for the attempts under `base`, and ends it."""
    kind = recipe.autodl.deployment_type
    if kind == "Container" and count != 1:
        raise BadInput("autodl.deployment_type Container is one machine; use Job or ReplicaSet for several")
    price = offer.price_cny_per_h
    template = {
        "dc_list": [region_sign(offer.region)],
        "gpu_name_set": [offer.gpu],
        "gpu_num": offer.gpu_count,
        **ranges(recipe.resources),
        "price_from": PRICE_FROM,
        "price_to": PRICE_CAP_PER_GPU * offer.gpu_count if price is None else math.ceil(price * CNY),
        "image_uuid": image,
        "cmd": keeper_command(
            base=base,
            boot_grace_s=BOOT_GRACE_S,
            max_duration_s=recipe.max_duration,
            linger_s=recipe.linger,
        ),
    }
    copies = {"replica_num": count} if kind != "Container" else {}
    return {
        "name": name,
        "deployment_type": kind,
        **copies,
        **({"parallelism_num": count} if kind == "Job" else {}),
        "reuse_container": recipe.autodl.reuse_container,
        "container_template": template,
    }


def image_uuid(client: AutoDLClient, image: str) -> str:
    """Give the uuid for a uuid, or for the name of a private image."""
    image = image or DEFAULT_IMAGE
    if image.startswith(("image-", "base-image-")):
        return image
    uuids = [one.image_uuid for one in client.private_images() if one.image_name == image]
    if len(uuids) > 1:
        raise Refused(f"AutoDL has {len(uuids)} images named {image!r}; give resources.image the uuid of one")
    if not uuids:
        raise unknown_image(client, image)
    return uuids[0]


def unknown_image(client: AutoDLClient, image: str) -> Refused:
    """Make the error for an image that AutoDL does not know, naming the nearest that it does."""
    try:
        own = [name for one in client.private_images() for name in (one.image_uuid, one.image_name)]
    except Unavailable:
        own = []
    names = ", ".join(nearest(image, [*own, *BASE_IMAGES]))
    return Refused(f"AutoDL has no image {image!r}; nearest: {names}; mend resources.image (see `gpujobs images`)")
