"""What a fake machine's disk holds when it is new, and where the host's files are let into it.

The system disk is a plain folder, so that copying the folder is a snapshot. What comes from the host (the system's
programs, Python, numpy) is bound read-only at start and never copied onto the disk.
"""

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

PRIVATE = ("/usr/local", "/root", "/tmp", "/var", "/opt", "/home", "/srv", "/mnt", "/etc")  # noqa: S108 - inside the machine
FROM_HOST_ETC = ("ld.so.cache", "ssl/certs", "ssl/openssl.cnf", "alternatives", "services", "protocols", "localtime")
FORBIDDEN = ("/usr", "/bin", "/sbin", "/lib", "/proc", "/dev", "/sys", "/run", "/etc")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NVIDIA_SMI = "/usr/local/bin/nvidia-smi"
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"

Bind = tuple[str, str, str]  # kind (ro, rw, link), source on the host, target in the machine

ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "environment": f'PATH="{PATH}"\n',
    "profile": f"export PATH={PATH}\n",
    "ld.so.conf": "/usr/local/lib\n",
}
# Debian's root leaves .bashrc early unless the shell is interactive, so a command over SSH does not see conda.
BASHRC = """case $- in *i*) ;; *) return ;; esac
PS1='\\u@\\h:\\w# '
export PATH={conda}/bin:$PATH
"""
PIP = """#!{conda}/bin/python3
import sys
from pip._internal.cli.main import main
sys.exit(main())
"""


class ImageError(ValueError):
    """A disk or a volume that cannot be mounted as asked."""


def prepare_disk(disk: Path, conda: str) -> None:
    """Install the image on an empty disk. A disk that was in use is left as its machine left it."""
    if (disk / "etc").is_symlink() or (disk / "etc").exists():
        return
    for top in PRIVATE:
        (disk / top[1:]).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (disk / name).mkdir(exist_ok=True)
        (disk / name).chmod(0o1777)
    for name in ("var/log", "var/lib", "var/cache", "usr/local/bin", "usr/local/lib"):
        (disk / name).mkdir(exist_ok=True)
    (disk / "root").chmod(0o700)
    for name, text in ETC.items():
        (disk / "etc" / name).write_text(text)
    (disk / "root/.bashrc").write_text(BASHRC.format(conda=conda))
    (disk / "root/.profile").write_text(". ~/.bashrc\n")
    prepare_conda(disk, conda)


def prepare_conda(disk: Path, conda: str) -> None:
    """Lay out what the image's Python may change: its bin (console scripts) and its site-packages."""
    scripts = disk / "conda/bin"
    scripts.mkdir(parents=True)
    (disk / "site-packages").mkdir()
    for name in ("python", "python3"):
        (scripts / name).symlink_to(VERSION)
    if (site_of_base() / "pip").is_dir():
        for name in ("pip", "pip3"):
            (scripts / name).write_text(PIP.format(conda=conda))
            (scripts / name).chmod(0o755)


def system_binds() -> Iterator[Bind]:
    """Yield (kind, source, target) of the host's programs and libraries."""
    yield "ro", "/usr", "/usr"
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            yield "link", str(path.readlink()), str(path)
        elif path.is_dir():
            yield "ro", str(path), str(path)


def disk_binds(disk: Path) -> Iterator[Bind]:
    """Yield the machine's own folders, and the few files of the host's /etc that its programs need."""
    for top in PRIVATE:
        yield "rw", str(disk / top[1:]), top
    for name in FROM_HOST_ETC:
        source = Path("/etc", name)
        if source.exists():
            yield "ro", str(source.resolve()), f"/etc/{name}"


def conda_binds(disk: Path, conda: str) -> Iterator[Bind]:
    """Yield what makes ``{conda}/bin/python3`` the fake's own base Python, with numpy and pip."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    yield "rw", str(disk / "conda"), conda
    yield "ro", str(base_python()), f"{conda}/bin/{VERSION}"
    yield "ro", str(stdlib), f"{conda}/lib/{VERSION}"
    include = Path(sysconfig.get_path("include"))
    if include.is_dir():
        yield "ro", str(include), f"{conda}/include/{VERSION}"
    # Debian's own Python looks in lib/python3/dist-packages instead, and has no site-packages to mount over.
    site = f"{conda}/lib/{VERSION}/site-packages" if (stdlib / "site-packages").is_dir() else debian_site(conda)
    yield "rw", str(disk / "site-packages"), site
    for package in packages():
        yield "ro", str(package), f"{site}/{package.name}"
    yield from library_binds(conda)


def library_binds(conda: str) -> Iterator[Bind]:
    """Yield libpython where the interpreter was linked to look for it, if it is shared."""
    folder = Path(sysconfig.get_config_var("LIBDIR") or "/nonexistent")
    if not sysconfig.get_config_var("Py_ENABLE_SHARED") or not folder.is_dir():
        return
    seen_from_inside = folder.is_relative_to("/usr") and not folder.is_relative_to("/usr/local")
    for library in sorted(folder.glob("libpython3*.so*")):
        yield "ro", str(library.resolve()), f"{conda}/lib/{library.name}"
        if not seen_from_inside:
            yield "ro", str(library.resolve()), str(library)


def debian_site(conda: str) -> str:
    return f"{conda}/lib/python3/dist-packages"


def base_python() -> Path:
    """Return the interpreter below every virtual environment."""
    return Path(sys.base_prefix, "bin", VERSION).resolve(strict=True)


def site_of_base() -> Path:
    stdlib = Path(sysconfig.get_path("stdlib"))
    here = stdlib / "site-packages"
    return here if here.is_dir() else stdlib.parent / "python3/dist-packages"


def packages() -> Iterator[Path]:
    """Yield the folders of numpy in the fake's own environment, and of the base's pip."""
    numpy = find_spec("numpy")
    if numpy is not None and numpy.origin is not None:
        site = Path(numpy.origin).parent.parent
        yield site / "numpy"
        yield from site.glob("numpy.libs")
        yield from site.glob("numpy-*.dist-info")
    yield from site_of_base().glob("pip")
    yield from site_of_base().glob("pip-*.dist-info")


def volume_binds(volumes: Mapping[str, Path]) -> Iterator[Bind]:
    """Yield the data disks, the outer ones first; refuse paths that would hide the system or lie in one another."""
    for inside, outside in sorted(volumes.items()):
        path = PurePosixPath(inside)
        if not path.is_absolute() or ".." in path.parts or len(path.parts) == 1:
            raise ImageError(f"volume path {inside!r} is not an absolute path below /")
        if not path.is_relative_to("/usr/local") and any(path.is_relative_to(top) for top in FORBIDDEN):
            raise ImageError(f"volume path {inside!r} would hide a part of the system; use one below /root or /mnt")
        if any(other != path and path.is_relative_to(other) for other in map(PurePosixPath, volumes)):
            raise ImageError(f"volume path {inside!r} lies in another volume")
        outside.mkdir(parents=True, exist_ok=True)
        yield "rw", str(outside.resolve()), str(path)


def make_mount_points(binds: Sequence[Bind]) -> None:
    """Create on the disk what is mounted over, without following a link that the machine may have left there."""
    for index, (kind, source, target) in enumerate(binds):
        holders = [bind for bind in binds[:index] if target.startswith(f"{bind[2]}/")]
        if kind == "link" or not holders:
            continue
        held, folder, top = max(holders, key=lambda bind: len(bind[2]))
        if held == "rw":
            make_mount_point(Path(folder), PurePosixPath(target[len(top) + 1 :]), is_folder=Path(source).is_dir())


def make_mount_point(top: Path, inside: PurePosixPath, *, is_folder: bool) -> None:
    folders = inside.parts if is_folder else inside.parts[:-1]
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for part in folders:
            fd = step_into(fd, part)
        if not is_folder:
            os.close(os.open(inside.name, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o755, dir_fd=fd))
    except OSError as error:
        raise ImageError(f"cannot mount over {inside} of the disk {top}: {error.strerror}") from error
    finally:
        os.close(fd)


def step_into(fd: int, part: str) -> int:
    with suppress(FileExistsError):
        os.mkdir(part, 0o755, dir_fd=fd)
    inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
    os.close(fd)
    return inner


def write_runtime(folder: Path, *, hostname: str, gpu: tuple[str, int, int]) -> Iterator[Bind]:
    """Write what belongs to this start and not to the disk (names, GPUs), and yield where it is bound."""
    (folder / "hostname").write_text(f"{hostname}\n")
    (folder / "hosts").write_text(f"127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\t{hostname}\n")
    if Path("/etc/resolv.conf").exists():
        shutil.copyfile("/etc/resolv.conf", folder / "resolv.conf")
        yield "rw", str(folder / "resolv.conf"), "/etc/resolv.conf"
    yield "rw", str(folder / "hostname"), "/etc/hostname"
    yield "rw", str(folder / "hosts"), "/etc/hosts"
    script = folder / "nvidia-smi"
    script.write_text(nvidia_smi(*gpu))
    script.chmod(0o755)
    yield "ro", str(script), NVIDIA_SMI


def nvidia_smi(name: str, count: int, memory_mb: int) -> str:
    """Return the fake nvidia-smi for these GPUs."""
    quoted = name.replace("'", "")
    body = Path(__file__).with_name("nvidia_smi").read_text()
    return body.replace("@NAME@", quoted).replace("@COUNT@", str(count)).replace("@MEMORY_MB@", str(memory_mb))
