"""What a pool of 1,000 templates costs that are not here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from lab.host import Host
from lab.libvirtd import Libvirtd
from lab.many import fuse_requests, register_many, requests_to, wait_until_quiet
from lab.site import site

COUNT: Final = 1000

# The bars, per template. contrib/bench measures the time; here it is doubled, because other
# processes may be at work.
FUSE_REQUESTS: Final = 8
SECONDS: Final = 2 * 0.0012


def test_listing_a_thousand_templates_costs_no_network_and_little_time(
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
            ["vol-info", "t0500.img", "--pool", "templates"],
        ):
            before, began = fuse_requests(host), time.monotonic()
            listing = libvirtd.virsh(*words).stdout
            seconds, requests = time.monotonic() - began, fuse_requests(host) - before
            print(f"{words[0]}: {seconds * 1000:.0f} ms, {requests} FUSE requests")
            assert requests > 0, "not one FUSE request was counted: the test shows nothing"
            assert requests <= FUSE_REQUESTS * COUNT
            assert seconds <= SECONDS * COUNT
            if words[0] == "vol-list":
                assert len(listing.strip().splitlines()) == COUNT
        assert requests_to(shop) == asked
