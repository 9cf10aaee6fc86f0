"""The other end of the control socket, for the command line. Synchronous.

The standard library's http.client: httpx would take as long to import as the rest of
``ddfs status`` together (80 ms against 20 ms), and one request needs nothing of it.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

from ddfs import errors
from ddfs.control import problems
from ddfs.control.action_messages import (
    AttachedDisk,
    AttachTemplate,
    Autostart,
    AutostartDomain,
    ClonedVolume,
    CloneTemplate,
    ExplainGate,
    GateReport,
)
from ddfs.control.decode import decode
from ddfs.control.deploy_messages import Deploy, DeployedDomain, Obstacles
from ddfs.control.keeping_messages import (
    Collect,
    CollectionStatus,
    DifferenceStatus,
    ForgetHost,
    Pin,
    Place,
    TakeStock,
)
from ddfs.control.messages import (
    AddTemplate,
    ChangeLimits,
    DaemonStatus,
    DefinePool,
    GateAnswer,
    GateQuestion,
    Limits,
    Names,
    PoolStatus,
    Prefetch,
    Problem,
    TemplateStatus,
)
from ddfs.control.version_messages import (
    Declared,
    Removed,
    SourceCheck,
    Updated,
    UpdateTemplate,
    Verification,
    Verify,
)

T = TypeVar("T")

# Answers from memory: a daemon that takes longer hangs.
QUICK_SECONDS: Final = 30.0

# What asks mirrors or libvirt. Not endless: a script has to get on at some time.
SLOW_SECONDS: Final = 600.0

# What may copy a whole image, onto a disk or into Ceph: 4 TiB at 50 MiB/s.
COPY_SECONDS: Final = 86_400.0

# 100,000 templates with ten mirrors each stay below this.
MAX_ANSWER_BYTES: Final = 512 * 1024 * 1024


class Client:
    """Asks the daemon at *path*. Methods are those of the service, and raise its errors.

    Without permission for *path*, requests that change nothing go to *reader_path*. Nobody
    there is :class:`~ddfs.errors.DaemonDownError`. Each request has a connection of its
    own; there is nothing to close.
    """

    def __init__(self, path: Path, reader_path: Path) -> None:
        self._path = path
        self._reader_path = reader_path

    def daemon_status(self) -> DaemonStatus:
        """The daemon in figures."""
        return self._ask(DaemonStatus, "GET", "/v1/status")

    def templates(self, names: Sequence[str] = ()) -> list[TemplateStatus]:
        """All templates, or those called *names*, in that order."""
        query = "?" + urlencode([("name", name) for name in names]) if names else ""
        return self._ask(list[TemplateStatus], "GET", f"/v1/templates{query}")

    def template(self, name: str) -> TemplateStatus:
        """One template."""
        return self._ask(TemplateStatus, "GET", f"/v1/templates/{quote(name, safe='')}")

    def add_template(self, request: AddTemplate) -> TemplateStatus:
        """Registers a template."""
        return self._ask(TemplateStatus, "POST", "/v1/templates", request, SLOW_SECONDS)

    def remove_template(self, name: str, *, purge: bool) -> None:
        """Forgets a template, and deletes its published file with *purge*."""
        path = f"/v1/templates/{quote(name, safe='')}?purge={str(purge).lower()}"
        self._request("DELETE", path, None, SLOW_SECONDS)

    def prefetch(self, names: Sequence[str], seeds: Sequence[str] = ()) -> list[TemplateStatus]:
        """Starts fetches by hand; does not wait for them. *seeds* are absolute paths."""
        message = Prefetch(tuple(names), tuple(seeds))
        return self._ask(list[TemplateStatus], "POST", "/v1/prefetch", message)

    def cancel(self, names: Sequence[str]) -> list[TemplateStatus]:
        """Ends fetches."""
        return self._ask(list[TemplateStatus], "POST", "/v1/cancel", Names(tuple(names)))

    def limits(self) -> Limits:
        """What fetches may take."""
        return self._ask(Limits, "GET", "/v1/limits")

    def change_limits(self, change: ChangeLimits) -> Limits:
        """Changes what is not None."""
        return self._ask(Limits, "PUT", "/v1/limits", change)

    def gate(self, question: GateQuestion) -> GateAnswer:
        """Asks what the hook asks."""
        return self._ask(GateAnswer, "POST", "/gate", question, SLOW_SECONDS)

    def define_pool(self, name: str | None) -> PoolStatus:
        """Defines and starts the libvirt pool on the mount."""
        return self._ask(PoolStatus, "POST", "/v1/pool", DefinePool(name), SLOW_SECONDS)

    def refresh_pool(self) -> PoolStatus:
        """Makes libvirt look at the pool again."""
        return self._ask(PoolStatus, "POST", "/v1/pool/refresh", None, SLOW_SECONDS)

    def undefine_pool(self) -> PoolStatus:
        """Takes the pool away from libvirt."""
        return self._ask(PoolStatus, "DELETE", "/v1/pool", None, SLOW_SECONDS)

    def domain_templates(self, domain: str) -> list[TemplateStatus]:
        """What *domain* needs; the fetches are started."""
        path = f"/v1/domains/{quote(domain, safe='')}/templates"
        return self._ask(list[TemplateStatus], "POST", path, None, SLOW_SECONDS)

    def start_domain(self, domain: str) -> None:
        """Starts *domain*."""
        path = f"/v1/domains/{quote(domain, safe='')}/start"
        self._request("POST", path, None, SLOW_SECONDS)

    def collect(self, request: Collect) -> CollectionStatus:
        """Deletes what nobody needs."""
        return self._ask(CollectionStatus, "POST", "/v1/gc", request, SLOW_SECONDS)

    def place(self, request: Place) -> None:
        """Fetches or copies templates to a primary storage."""
        body = _encoded(request)
        self._request("PUT", "/v1/places", body, SLOW_SECONDS)

    def take_stock(self, fix: bool) -> list[DifferenceStatus]:
        """Compares disk and catalogue."""
        message = TakeStock(fix)
        return self._ask(list[DifferenceStatus], "POST", "/v1/stock", message, SLOW_SECONDS)

    def pin(self, request: Pin) -> None:
        """Pins or unpins."""
        body = _encoded(request)
        self._request("PUT", "/v1/pins", body, QUICK_SECONDS)

    def forget_host(self, host: str) -> None:
        """Forgets a host that shared a primary storage and is gone for good."""
        body = _encoded(ForgetHost(host))
        self._request("POST", "/v1/hosts/forget", body, QUICK_SECONDS)

    def explain_gate(self, question: ExplainGate) -> GateReport:
        """What the hook would say."""
        return self._ask(GateReport, "POST", "/v1/gate/explain", question, SLOW_SECONDS)

    def attach(self, domain: str, request: AttachTemplate) -> AttachedDisk:
        """Gives a template that is here to a domain."""
        path = f"/v1/domains/{quote(domain, safe='')}/attach"
        return self._ask(AttachedDisk, "POST", path, request, SLOW_SECONDS)

    def clone(self, request: CloneTemplate) -> ClonedVolume:
        """Makes a disk from a template."""
        return self._ask(ClonedVolume, "POST", "/v1/clones", request, COPY_SECONDS)

    def obstacles(self, request: Deploy) -> Obstacles:
        """Why the host cannot run it."""
        return self._ask(Obstacles, "POST", "/v1/deployments/obstacles", request, SLOW_SECONDS)

    def deploy(self, request: Deploy) -> DeployedDomain:
        """Makes a domain and starts it."""
        return self._ask(DeployedDomain, "POST", "/v1/deployments", request, COPY_SECONDS)

    def confirm(self, token: str) -> None:
        """The domain that was made with that token stays."""
        self._request("PUT", f"/v1/deployments/{quote(token, safe='')}", None, QUICK_SECONDS)

    def withdraw(self, token: str) -> None:
        """Whatever was made with that token is taken back, unless it is confirmed."""
        path = f"/v1/deployments/{quote(token, safe='')}"
        self._request("DELETE", path, None, SLOW_SECONDS)

    def discard(self, name: str) -> None:
        """Deletes what an unfinished fetch left."""
        path = f"/v1/templates/{quote(name, safe='')}/partial"
        self._request("DELETE", path, None, SLOW_SECONDS)

    def autostart_domains(self) -> list[AutostartDomain]:
        """The domains that are to be started at boot."""
        return self._ask(list[AutostartDomain], "GET", "/v1/autostart", None, SLOW_SECONDS)

    def set_autostart(self, domain: str, *, enabled: bool) -> AutostartDomain:
        """Marks a domain to be started at boot, or not any more."""
        path = f"/v1/domains/{quote(domain, safe='')}/autostart"
        return self._ask(AutostartDomain, "PUT", path, Autostart(enabled), SLOW_SECONDS)

    # -- versions ---------------------------------------------------------------------------

    def check(self, name: str) -> SourceCheck:
        """Asks the source of a template whether it has changed."""
        path = f"/v1/templates/{quote(name, safe='')}/check"
        return self._ask(SourceCheck, "POST", path, None, SLOW_SECONDS)

    def update(self, name: str, request: UpdateTemplate) -> Updated:
        """Makes a version of what the source is now."""
        path = f"/v1/templates/{quote(name, safe='')}/update"
        return self._ask(Updated, "POST", path, request, SLOW_SECONDS)

    def verify(self, name: str, *, repair: bool) -> Verification:
        """Begins to verify what is in primary storage; does not wait."""
        path = f"/v1/templates/{quote(name, safe='')}/verify"
        return self._ask(Verification, "POST", path, Verify(repair))

    def verification(self, name: str) -> Verification:
        """How far that is."""
        return self._ask(Verification, "GET", f"/v1/templates/{quote(name, safe='')}/verify")

    def cancel_verification(self, name: str) -> Verification:
        """Ends it."""
        return self._ask(Verification, "DELETE", f"/v1/templates/{quote(name, safe='')}/verify")

    def declared(self) -> Declared:
        """What is declared about every name, secrets included."""
        return self._ask(Declared, "GET", "/v1/declarations")

    def declare(self, request: AddTemplate) -> Updated:
        """Makes a name what is declared."""
        path = f"/v1/declarations/{quote(request.name, safe='')}"
        return self._ask(Updated, "PUT", path, request, SLOW_SECONDS)

    def remove_versions(self, name: str, *, purge: bool) -> Removed:
        """Forgets all versions of a name that nothing uses."""
        path = f"/v1/declarations/{quote(name, safe='')}?purge={str(purge).lower()}"
        return self._ask(Removed, "DELETE", path, None, SLOW_SECONDS)

    def metrics(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return self._request("GET", "/metrics", None, QUICK_SECONDS)

    def _ask(
        self,
        kind: type[T],
        method: str,
        path: str,
        message: Any = None,
        seconds: float = QUICK_SECONDS,
    ) -> T:
        body = None if message is None else _encoded(message)
        return self._decode(kind, self._request(method, path, body, seconds))

    def _decode(self, kind: type[T], answer: bytes) -> T:
        try:
            return decode(kind, json.loads(answer))
        except ValueError as error:
            raise errors.DaemonDownError(
                f"what answers at {self._path} is not this version of ddfs: {error}"
            ) from error

    def _request(self, method: str, path: str, body: bytes | None, seconds: float) -> bytes:
        with self._connect(method, seconds) as connection:
            wire = http.client.HTTPConnection("localhost")
            wire.sock = connection
            headers = {"content-type": "application/json"} if body is not None else {}
            try:
                wire.request(method, path, body, headers | {"connection": "close"})
                response = wire.getresponse()
                answer = response.read(MAX_ANSWER_BYTES)
            except TimeoutError:
                raise errors.DaemonDownError(
                    f"the daemon at {self._path} has not answered for {seconds:g} s"
                ) from None
            except (OSError, http.client.HTTPException) as error:
                raise errors.DaemonDownError(
                    f"the daemon at {self._path} ended while it was asked, or none listens: "
                    f"{_words_of(error)}"
                ) from error
        # Nothing here redirects: such an answer means that nothing was done.
        if response.status >= 300:
            raise problems.error_of(self._decode(Problem, answer))
        return answer

    def _connect(self, method: str, seconds: float) -> socket.socket:
        try:
            return _connected(self._path, seconds)
        except PermissionError:
            if method != "GET":
                raise errors.DaemonDownError(
                    f"{self._path} may not be used by this user: run it as root"
                ) from None
        except OSError as error:
            raise _down(self._path) from error
        try:
            return _connected(self._reader_path, seconds)
        except OSError as error:
            raise _down(self._reader_path) from error


def _encoded(message: Any) -> bytes:
    """As JSON. What is at its default is left out: an older daemon, on another host of a
    deployment perhaps, refuses a key that it does not know.
    """
    plain = dataclasses.asdict(message)
    for field in dataclasses.fields(message):
        if field.default is not dataclasses.MISSING and plain[field.name] == field.default:
            del plain[field.name]
    return json.dumps(plain).encode()


def _connected(path: Path, seconds: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(seconds)
        connection.connect(os.fspath(path))
    except BaseException:
        connection.close()
        raise
    return connection


def _down(path: Path) -> errors.DaemonDownError:
    return errors.DaemonDownError(f"no daemon answers at {path}; start it with: ddfs serve")


def _words_of(error: OSError | http.client.HTTPException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
