"""``ddfs deploy``: a new domain from a template, on the first host that can run it.

Every host is asked before anything is done on it; the template is fetched there outside of
libvirt; then the host's own daemon makes disk, seed and domain, all or nothing. Whatever
goes wrong on one host is remembered, its traces are taken back, and the next one is tried.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ddfs import errors
from ddfs.cli import hosts, output, waiting
from ddfs.cli.deploy_options import (
    ArchOption,
    DiskSizeOption,
    MemoryOption,
    NetworkOption,
    PoolOption,
    UntestedOption,
    UserDataOption,
    VcpusOption,
    XmlOption,
)
from ddfs.cli.disks import TemplateArgument, parse_size
from ddfs.cli.session import JsonOption, Session, session_of
from ddfs.control.deploy_messages import Deploy, DeployedDomain
from ddfs.model import MiB, SpoolState
from ddfs.names import validate_machine_name

if TYPE_CHECKING:
    from ddfs.control.client import Client
    from ddfs.control.messages import TemplateStatus

# A mirror may have been caught in the middle of a change: then the next try finds it whole.
CHECKSUM_TRIES: Final = 3

# Of user data and of a domain's XML: no host takes more.
_MAX_TEXT_BYTES: Final = MiB

_ENDS: Final = (signal.SIGTERM, signal.SIGHUP)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog="Example: ddfs deploy debian-12 --name vm1 --memory 2G --disk-size 20G")(
        deploy
    )


def deploy(
    context: typer.Context,
    name: TemplateArgument,
    machine: Annotated[str, typer.Option("--name", metavar="VM", help="The new domain's name.")],
    only_on: Annotated[
        list[str] | None,
        typer.Option(
            "--host", metavar="HOST", help="Try only this one of the settings' hosts. Repeatable."
        ),
    ] = None,
    memory: MemoryOption = None,
    vcpus: VcpusOption = None,
    disk_size: DiskSizeOption = None,
    pool: PoolOption = None,
    network: NetworkOption = None,
    arch: ArchOption = None,
    user_data: UserDataOption = None,
    xml: XmlOption = None,
    untested: UntestedOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a domain from a template and start it, on the first host that can run it.

    Hosts are those of the settings ([host.NAME]), in their order, or this one. One that does
    not know the template gets it as another one has it. If anything fails on a host, what was
    made there is taken back, and the next one is tried.
    """
    session = session_of(context)
    validate_machine_name(machine)
    name = hosts.template_name(session, name)
    request = Deploy(
        template=name,
        name=machine,
        pool=pool,
        memory_mib=_mib(memory),
        vcpus=vcpus,
        disk_size=parse_size(disk_size) if disk_size else None,
        network=network,
        arch=arch,
        user_data=_text_of("--user-data", user_data),
        xml=_text_of("--xml", xml),
        untested=untested,
    )
    with _ended_as_by_ctrl_c():
        host, done = _deploy_somewhere(session, only_on or (), request)
    if as_json:
        output.print_json({"host": host, **asdict(done)})
        return
    print(f"{done.name}: runs on {host}, from {name}; its disk is {done.disk}")


class _UncertainError(Exception):
    """It may run there: to deploy it elsewhere could make two of it."""


def _deploy_somewhere(
    session: Session, names: Sequence[str], request: Deploy
) -> tuple[str, DeployedDomain]:
    """The first host that can, and what was made there; NotDeployedError with all reasons."""
    failures: dict[str, str] = {}
    knowledge = hosts.Knowledge(session, request.template)
    chosen = hosts.chosen(session, names)
    for number, (host, address) in enumerate(chosen.items(), start=1):
        try:
            with hosts.client_of(session, host, address) as client:
                return host, deploy_on(client, host, request, knowledge)
        except errors.InvalidValueError:
            # The request itself is wrong: no other host would take it.
            raise
        except _UncertainError as error:
            raise errors.NotDeployedError(str(error)) from error
        except errors.DdfsError as error:
            failures[host] = str(error)
            if number < len(chosen):
                print(f"ddfs: {host}: {error}", file=sys.stderr)
    reasons = "; ".join(f"{host}: {reason}" for host, reason in failures.items())
    raise errors.NotDeployedError(f"{request.name} runs nowhere: {reasons}")


def deploy_on(
    client: Client, host: str, request: Deploy, knowledge: hosts.Knowledge
) -> DeployedDomain:
    """Deploy on one host; after an error or Ctrl-C nothing of it is left there.

    A template that was fetched whole stays, if it was registered there before: it is the
    host's, and the next try needs it.
    """
    knows_template = _refuse_unsuitable(client, request)
    if knows_template:
        return _fetch_and_deploy(client, host, request, client.template(request.template))
    with hosts.registered(client, host, knowledge) as there:
        # Now it is known whether there is room for it.
        _refuse_unsuitable(client, request)
        return _fetch_and_deploy(client, host, request, there)


def _refuse_unsuitable(client: Client, request: Deploy) -> bool:
    """Whether the host knows the template; UnsuitableHostError for all that is in the way."""
    found = client.obstacles(request)
    if found.reasons:
        raise errors.UnsuitableHostError("; ".join(found.reasons))
    return found.knows_template


def _fetch_and_deploy(
    client: Client, host: str, request: Deploy, before: TemplateStatus
) -> DeployedDomain:
    try:
        _fetch(client, host, before)
    except BaseException:
        _discard(client, before)
        raise
    token, is_confirmed = uuid.uuid4().hex, False
    try:
        made = client.deploy(replace(request, token=token))
        with _uninterrupted():
            _confirm(client, host, made, token)
            is_confirmed = True
        return made
    except _UncertainError:
        raise
    except BaseException as error:
        if not is_confirmed:
            _withdraw(client, host, request.name, token, said=isinstance(error, KeyboardInterrupt))
        raise


def _confirm(client: Client, host: str, made: DeployedDomain, token: str) -> None:
    try:
        client.confirm(token)
    except errors.DaemonDownError as error:
        raise _UncertainError(
            f"{made.name} was started on {host}, but not confirmed ({error}): within a minute "
            "it is taken back there, or it stays; look there before it is deployed again"
        ) from error


def _withdraw(client: Client, host: str, name: str, token: str, *, said: bool) -> None:
    """Wait until nothing of it is left there; whatever then is left is taken back over there."""
    try:
        client.withdraw(token)
    except errors.NotDeployedError as error:
        print(f"ddfs: {host}: {error}", file=sys.stderr)
    except (errors.DdfsError, KeyboardInterrupt):
        text = "is taken back over there, at the latest when its daemon starts again"
        print(f"ddfs: {host}: {name} {text}", file=sys.stderr)
    else:
        if said:
            print(f"ddfs: {host}: {name} was taken back", file=sys.stderr)


@contextlib.contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """A terminal that is closed, timeout(1) and a shutdown take back what Ctrl-C does."""

    def end(_number: int, _frame: object) -> None:
        # One is enough: a second one would break off the taking back.
        for each in _ENDS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.getsignal(each) for each in _ENDS}
    for each, how in before.items():
        if how is signal.SIG_DFL:  # nohup(1) ignores SIGHUP
            signal.signal(each, end)
    try:
        yield
    finally:
        for each, how in before.items():
            signal.signal(each, how)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C and the like come too late in here, and do nothing."""
    before = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, *_ENDS)}
    try:
        yield
    finally:
        for each, how in before.items():
            signal.signal(each, how)


def _fetch(client: Client, host: str, template: TemplateStatus) -> None:
    for attempt in range(1, CHECKSUM_TRIES + 1):
        asked = client.prefetch([template.exact_name])
        # One that ran before goes on without us; see _discard.
        goes_on = template.state == SpoolState.FETCHING.value
        there = host if host != hosts.THIS_HOST else None
        found = waiting.wait(client, asked, goes_on=goes_on, host=there)
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
        waiting.wait(client, client.templates([before.exact_name]), goes_on=False)
        client.discard(before.exact_name)


def _mib(text: str | None) -> int | None:
    if text is None:
        return None
    size = parse_size(text)
    if size < MiB:
        raise errors.InvalidValueError(f"--memory {text}: write a size, as 2G or 512M")
    return size // MiB


def _text_of(option: str, path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise errors.InvalidValueError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > _MAX_TEXT_BYTES:
        raise errors.InvalidValueError(f"{path}: {option} takes up to 1 MiB")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise errors.InvalidValueError(f"{path}: it is not text in UTF-8") from None
