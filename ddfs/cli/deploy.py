"""``ddfs deploy``: a new domain from a template, on the first host that can run it.

Every host is asked before anything is done on it; the template is fetched there outside of
libvirt; then the host's own daemon makes disk, seed and domain, all or nothing. Whatever
goes wrong on one host is remembered, its traces are taken back, and the next one is tried.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ddfs import errors
from ddfs.cli import output, waiting
from ddfs.cli.disks import TemplateArgument, parse_size
from ddfs.cli.session import JsonOption, Session, session_of
from ddfs.control.deploy_messages import Deploy, DeployedDomain
from ddfs.model import MiB, SpoolState

if TYPE_CHECKING:
    from ddfs.control.client import Client
    from ddfs.control.messages import TemplateStatus

# A mirror may have been caught in the middle of a change: then the next try finds it whole.
CHECKSUM_TRIES: Final = 3

# The host whose daemon is the one of the settings, where no others are named.
THIS_HOST: Final = "this host"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog="Example: ddfs deploy debian-12 --name vm1 --memory 2G --disk-size 20G")(
        deploy
    )


def deploy(
    context: typer.Context,
    name: TemplateArgument,
    machine: Annotated[str, typer.Option("--name", metavar="VM", help="The new domain's name.")],
    hosts: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="HOST", help="Only there; of [host.HOST]. Repeatable."),
    ] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="As 2G; 1G.")] = None,
    vcpus: Annotated[int | None, typer.Option(metavar="N", help="Processors; 1.")] = None,
    disk_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="As 20G; the template's.")
    ] = None,
    pool: Annotated[
        str | None, typer.Option(metavar="POOL", help="Where its disk goes; default.")
    ] = None,
    network: Annotated[
        str | None, typer.Option(metavar="NET", help="A network of libvirt, or none; default.")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(metavar="ARCH", help="As x86_64; whatever the host has.")
    ] = None,
    user_data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For cloud-init in the guest.")
    ] = None,
    xml: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A domain's XML to fill in.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a domain from a template and start it, on the first host that can run it.

    Hosts are those of the settings ([host.NAME]), in their order, or this one. If anything
    fails on a host, what was made there is taken back, and the next one is tried.
    """
    session = session_of(context)
    request = Deploy(
        template=name,
        name=machine,
        pool=pool,
        memory_mib=_mib(memory),
        vcpus=vcpus,
        disk_size=parse_size(disk_size) if disk_size else None,
        network=network,
        arch=arch,
        user_data=_text_of(user_data),
        xml=_text_of(xml),
    )
    host, done = _deploy_somewhere(session, hosts or (), request)
    if as_json:
        output.print_json({"host": host, **asdict(done)})
        return
    print(f"{done.name}: runs on {host}, from {name}; its disk is {done.disk}")


def _deploy_somewhere(
    session: Session, hosts: Sequence[str], request: Deploy
) -> tuple[str, DeployedDomain]:
    """The first host that can, and what was made there; NotDeployedError with all reasons."""
    failures: dict[str, str] = {}
    for host, address in _chosen(session, hosts).items():
        try:
            with _client(session, host, address) as client:
                return host, deploy_on(client, request)
        except errors.InvalidValueError:
            # The request itself is wrong: no other host would take it.
            raise
        except errors.DdfsError as error:
            failures[host] = str(error)
            print(f"ddfs: {host}: {error}", file=sys.stderr)
    reasons = "; ".join(f"{host}: {reason}" for host, reason in failures.items())
    raise errors.NotDeployedError(f"{request.name} runs nowhere: {reasons}")


def deploy_on(client: Client, request: Deploy) -> DeployedDomain:
    """Deploy on one host; after an error or Ctrl-C nothing of it is left there.

    A template that was fetched whole stays: it is the host's, and the next try needs it.
    """
    reasons = client.obstacles(request).reasons
    if reasons:
        raise errors.UnsuitableHostError("; ".join(reasons))
    before = client.template(request.template)
    try:
        _fetch(client, before)
    except BaseException:
        _discard(client, before)
        raise
    try:
        return client.deploy(request)
    except KeyboardInterrupt:
        print(f"ddfs: {request.name} is taken back over there", file=sys.stderr)
        raise


def _fetch(client: Client, template: TemplateStatus) -> None:
    for attempt in range(1, CHECKSUM_TRIES + 1):
        asked = client.prefetch([template.exact_name])
        # One that ran before goes on without us; see _discard.
        goes_on = template.state == SpoolState.FETCHING.value
        found = waiting.wait(client, asked, goes_on=goes_on)
        try:
            waiting.raise_if_missing(found)
        except errors.ChecksumError:
            if attempt == CHECKSUM_TRIES:
                raise
        else:
            return


def _discard(client: Client, before: TemplateStatus) -> None:
    """End the fetch and delete its data, if there was neither before."""
    if before.state != SpoolState.ABSENT.value or before.bytes_here:
        return
    # The host may be out of reach by now; what failed first is what is to be told.
    with contextlib.suppress(errors.DdfsError):
        client.cancel([before.exact_name])
        waiting.wait(client, client.templates([before.exact_name]))
        client.discard(before.exact_name)


def _chosen(session: Session, names: Sequence[str]) -> Mapping[str, str]:
    """The addresses of the hosts to try, by name, in order."""
    known = {name: host.socket for name, host in session.settings.hosts.items()}
    unknown = [name for name in names if name not in known]
    if unknown:
        listed = ", ".join(known) or "none"
        raise errors.InvalidValueError(
            f"no host is called {unknown[0]!r}; those in the settings ([host.NAME]): {listed}"
        )
    if names:
        return {name: known[name] for name in dict.fromkeys(names)}
    return known or {THIS_HOST: str(session.settings.socket)}


@contextlib.contextmanager
def _client(session: Session, host: str, address: str) -> Iterator[Client]:
    from ddfs.control.client import Client
    from ddfs.control.remote import reached

    if host == THIS_HOST:
        yield session.client
        return
    with reached(address) as path:
        yield Client(path, path)


def _mib(text: str | None) -> int | None:
    if text is None:
        return None
    size = parse_size(text)
    if size < MiB:
        raise errors.InvalidValueError(f"--memory {text}: write a size, as 2G or 512M")
    return size // MiB


def _text_of(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise errors.InvalidValueError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise errors.InvalidValueError(f"{path}: it is not text in UTF-8") from None
