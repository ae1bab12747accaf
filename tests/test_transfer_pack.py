"""The tar stream that goes up holds what the folder holds, whatever the sizes."""

import io
import random
import tarfile
from pathlib import Path

from gpujobs.transfer_pack import READ_BYTES, survey, tar_stream


def test_files_of_every_size_come_out_as_they_went_in(tmp_path: Path) -> None:
    dice = random.Random(1)
    edges = [0, 1, 511, 512, 513, READ_BYTES - 1, READ_BYTES, READ_BYTES + 1, READ_BYTES * 2 - 700]
    wanted = {f"f{n:03}": dice.randbytes(size) for n, size in enumerate(edges + dice.choices(range(700_000), k=25))}
    for name, data in wanted.items():
        (tmp_path / name).write_bytes(data)
    stream = io.BytesIO(b"".join(tar_stream(tmp_path, survey(tmp_path))))
    with tarfile.open(fileobj=stream) as archive:
        came = {member.name.removeprefix("./"): archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert came == wanted
