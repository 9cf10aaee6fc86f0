"""Many templates that are not here, and what looking at them costs."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Final

from lab.bootimage import SECTOR, boot_sector
from lab.host import Host
from lab.metalink import write_metalink
from lab.site import Site

IMAGE_BYTES: Final = 128 * 1024

QUIET_SECONDS: Final = 7.0


def register_many(host: Host, shop: Site, count: int) -> None:
    """*count* different raw images, each with a metalink of its own: ``t0000.img`` and on."""
    mirror = shop.mirrors[0]

    def register(number: int) -> None:
        name = f"t{number:04}"
        image = mirror.root / f"{name}.img"
        image.write_bytes(boot_sector(name) + Random(number).randbytes(IMAGE_BYTES - SECTOR))
        document = shop.documents.root / f"{name}.meta4"
        write_metalink(document, image, [mirror.url(image.name)])
        source = shop.documents.url(document.name)
        host.api_json("POST", "/v1/templates", {"name": name, "source": source, "format": "raw"})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(register, range(count)))


def wait_until_quiet(host: Host) -> None:
    """Until nobody has asked the mount for a while: the daemon itself lets libvirt refresh its
    pool some seconds after templates have come.
    """
    seen, since = -1, time.monotonic()
    while time.monotonic() - since < QUIET_SECONDS:
        time.sleep(0.2)
        requests = fuse_requests(host)
        if requests != seen:
            seen, since = requests, time.monotonic()


def requests_to(shop: Site) -> int:
    """Everything that its mirrors were asked so far, documents too."""
    return sum(len(mirror.requests()) for mirror in (shop.documents, *shop.mirrors))


def fuse_requests(host: Host) -> int:
    """All kinds, from the daemon's own metrics."""
    text = host.api("GET", "/metrics")[1].decode()
    lines = [line for line in text.splitlines() if line.startswith("ddfs_fuse_requests_total")]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))
