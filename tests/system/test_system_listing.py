"""What a pool of many templates costs that are not here. Its time is for contrib/bench."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.many import fuse_requests, register_many, requests_to, wait_until_quiet
from lab.site import site

COUNT: Final = 300

# For each template.
FUSE_REQUESTS: Final = 8


def test_listing_many_templates_costs_no_network_and_few_requests(
    host: Host, libvirtd: Libvirtd, directory: Path
) -> None:
    with site(directory / "site", [None]) as shop:
        register_many(host, shop, COUNT)
        host.ddfs("pool", "define", "--name", "templates")
        libvirtd.virsh("pool-refresh", "templates")
        wait_until_quiet(host)
        asked = requests_to(shop)
        for words in (
            ["pool-refresh", "templates"],
            ["vol-list", "templates", "--details"],
            ["vol-info", "t0150.img", "--pool", "templates"],
        ):
            before = fuse_requests(host)
            listing = libvirtd.virsh(*words).stdout
            requests = fuse_requests(host) - before
            print(f"{words[0]}: {requests} FUSE requests")
            assert requests > 0, "not one FUSE request was counted: the test shows nothing"
            assert requests <= FUSE_REQUESTS * COUNT
            if words[0] == "vol-list":
                assert len(listing.strip().splitlines()) == COUNT
        assert requests_to(shop) == asked
