"""A template as an image in an rbd pool: written by qemu-img, which speaks to Ceph itself.

Blocks. The image has to be there already, empty and large enough; zeros are not written. Options
of QEMU's rbd driver: `qapi/block-core.json`, BlockdevOptionsRbd.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Final

from ddfs import errors
from ddfs.model import ImageFormat, PublishedFile, RbdPool

# A cluster that does not answer ends a copy with an error instead of keeping it for ever: so long
# for its monitors (libvirt's own choice), and so long for one write. qemu-img is gone after four of
# those: it waits for what follows the write that failed, too.
_MONITOR_SECONDS: Final = 30
_WRITE_SECONDS: Final = 60

# Of librados most is the stacks of its threads. A copy may take any time while it gets on.
_LIMITS: Final = ("prlimit", "--as=8589934592", "--")

# How often it is looked whether anybody still wants the copy.
_LOOK_SECONDS: Final = 0.2


def copy(
    source: PublishedFile,
    image_format: ImageFormat,
    pool: RbdPool,
    image: str,
    check_cancelled: Callable[[], object],
) -> None:
    """Write the disk in *source* to the start of *image*, as raw bytes.

    *check_cancelled* is called now and then, and may raise; qemu-img is ended then. Raises
    :class:`errors.StorageError` and :class:`errors.StorageFullError`; what was written by then
    stays. The key of the pool is in memory only: no file and no command line has it.
    """
    with _in_memory(configuration(pool)) as fd:
        command = [*_LIMITS, *arguments(source, image_format, pool, image, f"/dev/fd/{fd}")]
        code, said = _run(command, fd, check_cancelled)
    if code == 0:
        return
    where = f"{pool.name}/{image}"
    if "driver 'rbd'" in said or "protocol 'rbd'" in said:
        raise errors.StorageError(
            f"{where}: qemu-img has no driver for rbd; install QEMU's (Debian: qemu-block-extra)"
        )
    kind = errors.StorageFullError if "No space left" in said else errors.StorageError
    raise kind(f"{where}: qemu-img convert: {said or f'exit status {code}'}")


def write(data: bytes, pool: RbdPool, image: str, check_cancelled: Callable[[], object]) -> None:
    """As :func:`copy`, with *data* for the disk."""
    fd = os.memfd_create("data", os.MFD_CLOEXEC)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        source = PublishedFile(f"/proc/{os.getpid()}/fd/{fd}", 0, 0, len(data), 0)
        copy(source, ImageFormat.RAW, pool, image, check_cancelled)


def arguments(
    source: PublishedFile, image_format: ImageFormat, pool: RbdPool, image: str, conf: str
) -> list[str]:
    """The command, with the file *conf* as Ceph's configuration."""
    below = {"driver": "file", "filename": source.path}
    options: dict[str, object] = {"driver": image_format.qemu_name, "file": below}
    if source.is_volume:
        below["driver"] = "host_device"
        if image_format.qemu_name == "raw":
            # What the device has behind it is none of the template.
            options["size"] = source.size
    target = {"driver": "raw", "file.driver": "rbd", "file.pool": pool.name, "file.image": image}
    target["file.conf"] = conf
    if pool.user is not None:
        target["file.user"] = pool.user
    # A comma in a value is written twice (qemu's option syntax).
    words = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in target.items())
    flags = ("-q", "-n", "--target-is-zero", "-t", "writeback", "--target-image-opts")
    return ["qemu-img", "convert", *flags, f"json:{json.dumps(options)}", words]


def configuration(pool: RbdPool) -> str:
    """What libvirt tells librados of a pool (virStorageBackendRBDOpenRADOSConn), as a file."""
    lines = [
        "[global]",
        f"mon_host = {','.join(pool.monitors)}",
        f"client_mount_timeout = {_MONITOR_SECONDS}",
        f"rados_mon_op_timeout = {_MONITOR_SECONDS}",
        f"rados_osd_op_timeout = {_WRITE_SECONDS}",
        f"auth_client_required = {'none' if pool.user is None else 'cephx'}",
    ]
    if pool.user is not None:
        lines.append(f"key = {base64.b64encode(pool.key).decode()}")
    # The operator's last: the last one counts.
    lines += [f"{name} = {value}" for name, value in pool.options]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _in_memory(text: str) -> Iterator[int]:
    fd = os.memfd_create("ceph.conf", os.MFD_CLOEXEC)
    try:
        os.write(fd, text.encode())
        yield fd
    finally:
        os.close(fd)


def _run(command: list[str], fd: int, check_cancelled: Callable[[], object]) -> tuple[int, str]:
    """Its exit status, and what it complained of in one line."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(fd,),
        )
    except FileNotFoundError as error:
        raise errors.StorageError(f"{error.filename} is not installed") from error
    with process:
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    _, said = process.communicate(timeout=_LOOK_SECONDS)
                    return process.returncode, " ".join(said.decode(errors="replace").split())
                check_cancelled()
        except BaseException:
            process.kill()
            raise
