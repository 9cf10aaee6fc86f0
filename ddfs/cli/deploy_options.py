"""The options of ``deploy`` that say what the domain is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MemoryOption = Annotated[
    str | None, typer.Option("--memory", metavar="SIZE", help="Its memory, as 2G. Unless told: 1G.")
]
VcpusOption = Annotated[
    int | None, typer.Option("--vcpus", metavar="N", help="Its processors. Unless told: 1.", min=1)
]
DiskSizeOption = Annotated[
    str | None,
    typer.Option(
        "--disk-size", metavar="SIZE", help="Its disk's size, as 20G. Unless told: the template's."
    ),
]
PoolOption = Annotated[
    str | None,
    typer.Option(
        "--pool", metavar="POOL", help="The libvirt pool for its disk. Unless told: default."
    ),
]
NetworkOption = Annotated[
    str | None,
    typer.Option(
        "--network",
        metavar="NET",
        help="A network of libvirt; none: without one. Unless told: default.",
    ),
]
ArchOption = Annotated[
    str | None,
    typer.Option("--arch", metavar="ARCH", help="Only on a host of that kind, as x86_64."),
]
UserDataOption = Annotated[
    Path | None,
    typer.Option("--user-data", metavar="FILE", help="What cloud-init in the guest is given."),
]
XmlOption = Annotated[
    Path | None,
    typer.Option("--xml", metavar="FILE", help="XML of a domain, which gets this name and disk."),
]
UntestedOption = Annotated[
    bool,
    typer.Option("--untested", help="Also into a pool of type rbd, which was never tried."),
]
