"""Domains that are started at boot, once their templates are here."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ddfs import errors
from ddfs.cli import output
from ddfs.cli.domains import check_domain_name
from ddfs.cli.session import JsonOption, session_of
from ddfs.cli.text import one_line
from ddfs.model import SpoolState

if TYPE_CHECKING:
    from ddfs.control.client import Client
    from ddfs.control.messages import TemplateStatus

group = typer.Typer(
    help="Start domains at boot, once their templates are here.", rich_markup_mode=None
)

_LOOK_SECONDS: Final = 1.0

# A boot without a network, or with a slow mirror, may take long; nobody waits for it.
_DEFAULT_TIMEOUT: Final = 3600.0

DomainArgument = Annotated[str, typer.Argument(metavar="DOMAIN", help="The domain's name.")]


@group.command(epilog="Example: ddfs autostart enable vm1")
def enable(context: typer.Context, domain: DomainArgument, as_json: JsonOption = False) -> None:
    """Have a domain started at boot by ddfs, and not by libvirt itself any more.

    libvirt starts its own one after the other and answers nobody meanwhile; here each starts
    when its templates are complete.
    """
    _set(context, domain, True, as_json)


@group.command(epilog="Example: ddfs autostart disable vm1")
def disable(context: typer.Context, domain: DomainArgument, as_json: JsonOption = False) -> None:
    """Leave a domain to libvirt again, whose own autostart is as it was before."""
    _set(context, domain, False, as_json)


def _set(context: typer.Context, domain: str, enabled: bool, as_json: bool) -> None:
    check_domain_name(domain)
    done = session_of(context).client.set_autostart(domain, enabled=enabled)
    if as_json:
        output.print_json(done)
        return
    print(f"{domain}: {'started at boot by ddfs' if enabled else 'not started by ddfs'}")


@group.command("list", epilog="Example: ddfs autostart list")
def show(context: typer.Context, as_json: JsonOption = False) -> None:
    """The domains that are started at boot."""
    found = session_of(context).client.autostart_domains()
    if as_json:
        output.print_json(found)
        return
    rows = [(marked.domain, "runs" if marked.active else "off") for marked in found]
    output.print_table(("DOMAIN", "STATE"), rows)


@group.command(epilog="Example: ddfs autostart run")
def run(
    context: typer.Context,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="Give up after so long.")
    ] = _DEFAULT_TIMEOUT,
    as_json: JsonOption = False,
) -> None:
    """Start the marked domains, each as soon as its templates are here. For boot.

    Waits for the daemon, and goes on with the others when one cannot be started. The exit
    code is that of the first that was not.
    """
    starting = _Starting(session_of(context).client, time.monotonic() + timeout)
    starting.run()
    if as_json:
        output.print_json({"started": starting.started, "failed": starting.failed})
    if starting.first_error is not None:
        raise typer.Exit(starting.first_error.exit_code)


class _Starting:
    """One run: what has started, and what will not."""

    def __init__(self, client: Client, deadline: float) -> None:
        self._client = client
        self._deadline = deadline
        self.started: list[str] = []
        self.failed: dict[str, str] = {}
        self.first_error: errors.DdfsError | None = None

    def run(self) -> None:
        """Until every domain has started or failed, or it is too late."""
        waiting: dict[str, list[str] | None] = dict.fromkeys(self._marked())
        while waiting:
            for domain in list(waiting):
                try:
                    is_done, waiting[domain] = self._advance(domain, waiting[domain])
                except errors.DdfsError as error:
                    self._fail(domain, error)
                    is_done = True
                if is_done:
                    del waiting[domain]
            if waiting and time.monotonic() >= self._deadline:
                break
            if waiting:
                time.sleep(_LOOK_SECONDS)
        for domain in waiting:
            self._fail(domain, errors.NotHereYetError("its templates did not come in time"))

    def _marked(self) -> list[str]:
        """Those that do not run; waits for the daemon and for libvirtd."""
        while True:
            try:
                found = self._client.autostart_domains()
            except (errors.DaemonDownError, errors.LibvirtError):
                if time.monotonic() >= self._deadline:
                    raise
                time.sleep(_LOOK_SECONDS)
            else:
                return [marked.domain for marked in found if not marked.active]

    def _advance(self, domain: str, names: list[str] | None) -> tuple[bool, list[str] | None]:
        """Whether it has started by now, and the names of the templates that it needs."""
        if names is None:
            found = self._client.domain_templates(domain)
            names = [status.name for status in found]
        else:
            found = self._client.templates(names) if names else []
            self._try_again(found)
        if any(status.state != SpoolState.PUBLISHED.value for status in found):
            return False, names
        self._client.start_domain(domain)
        self.started.append(domain)
        print(f"{domain}: started", file=sys.stderr)
        return True, names

    def _try_again(self, found: list[TemplateStatus]) -> None:
        """A fetch that failed rests for a while: at boot the network may come later."""
        resting = [s.name for s in found if s.state == SpoolState.FAILED.value and not s.retry_in]
        if resting:
            self._client.prefetch(resting)

    def _fail(self, domain: str, error: errors.DdfsError) -> None:
        self.failed[domain] = str(error)
        self.first_error = self.first_error or error
        print(f"ddfs: {domain}: {one_line(str(error))}", file=sys.stderr)
