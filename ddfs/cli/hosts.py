"""The hosts that deployments go to, and templates that one of them does not know yet."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from ddfs import errors
from ddfs.cli import waiting
from ddfs.cli.session import Session
from ddfs.declaration import PATH_KEYS, SECRET_KEYS

if TYPE_CHECKING:
    from ddfs.control.client import Client
    from ddfs.control.messages import AddTemplate, TemplateStatus

# The host whose daemon is the one of the settings, where no others are named.
THIS_HOST: Final = "this host"

# Of a declaration: what may be a file of the host that it was made on.
_MAYBE_FILES: Final = ("source", "checksum_url", "signature")


def chosen(session: Session, names: Sequence[str]) -> Mapping[str, str]:
    """The addresses of the hosts to try, by name, in order."""
    known = _known(session)
    unknown = [name for name in names if name not in known]
    if unknown:
        listed = ", ".join(known) or "none"
        raise errors.InvalidValueError(
            f"no host is called {unknown[0]!r}; those in the settings ([host.NAME]): {listed}"
        )
    if names:
        return {name: known[name] for name in dict.fromkeys(names)}
    return known or {THIS_HOST: str(session.settings.socket)}


def template_name(session: Session, text: str) -> str:
    """As :meth:`Session.template_name`, where this host has a daemon that knows it."""
    try:
        return session.template_name(text)
    except (errors.DaemonDownError, errors.UnknownTemplateError):
        return text


def _known(session: Session) -> dict[str, str]:
    return {name: host.socket for name, host in session.settings.hosts.items()}


@contextlib.contextmanager
def client_of(session: Session, host: str, address: str) -> Iterator[Client]:
    """Asks the daemon there; :class:`errors.DaemonDownError`."""
    from ddfs.control.client import Client
    from ddfs.control.remote import reached

    if host == THIS_HOST:
        yield session.client
        return
    with reached(address) as path:
        yield Client(path, path)


@dataclass(frozen=True)
class Known:
    """What a host knows of a template: its declaration, and the content that it stands for."""

    host: str
    declaration: AddTemplate
    content_id: str


class Knowledge:
    """What is declared about the template *name*, on this host or on one of the settings."""

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self.name = name

    @cached_property
    def found(self) -> Known | None:
        """The first host that knows it; those that do not answer know nothing."""
        here = {THIS_HOST: str(self._session.settings.socket)}
        for host, address in {**here, **_known(self._session)}.items():
            with contextlib.suppress(errors.DdfsError):
                with client_of(self._session, host, address) as client:
                    content_id = client.template(self.name).content_id
                    for declared in client.declared().templates:
                        if declared.name == self.name:
                            return Known(host, declared, content_id)
        return None


@contextlib.contextmanager
def registered(client: Client, host: str, knowledge: Knowledge) -> Iterator[TemplateStatus]:
    """The template is registered at *client* meanwhile, as another host declares it; it stays
    so unless this ends with an error, and then if something uses it.

    Raises :class:`errors.UnsuitableHostError` where that cannot be.
    """
    known = knowledge.found
    if known is None:
        raise errors.UnsuitableHostError(
            f"no template is called {knowledge.name!r} there, nor on any other host that answers; "
            "register it with: ddfs template add"
        )
    try:
        there = client.add_template(known.declaration)
    except KeyboardInterrupt:
        print(f"ddfs: {host}: {knowledge.name} may be registered there by now", file=sys.stderr)
        raise
    except errors.DdfsError as error:
        raise errors.UnsuitableHostError(
            f"{knowledge.name} cannot be registered there: {error}{_hint(known.declaration)}"
        ) from error
    try:
        if there.content_id != known.content_id:
            raise errors.UnsuitableHostError(
                f"{knowledge.name} would be other content there: its source has changed since "
                f"it was registered on {known.host}; first: ddfs template update {knowledge.name}"
            )
        with_secrets = " and its headers" if _has_secrets(known.declaration) else ""
        line = f"{knowledge.name} is registered there, with its source{with_secrets} as on"
        print(f"ddfs: {host}: {line} {known.host}", file=sys.stderr)
        yield there
    except BaseException:
        _forget(client, host, there)
        raise


def _forget(client: Client, host: str, there: TemplateStatus) -> None:
    """Take the registration back, with what was fetched, unless something uses it."""
    try:
        client.cancel([there.exact_name])
        waiting.wait(client, client.templates([there.exact_name]), goes_on=False)
        client.remove_template(there.exact_name, purge=True)
    except errors.UnknownTemplateError:
        return
    except errors.DdfsError as error:
        print(f"ddfs: {host}: {there.name} stays registered there: {error}", file=sys.stderr)


def _has_secrets(declaration: AddTemplate) -> bool:
    return any(getattr(declaration, key) for key in SECRET_KEYS)


def _hint(declaration: AddTemplate) -> str:
    """Which of its words are files, that are looked for over there under the same name."""
    files = [key for key in sorted(PATH_KEYS) if getattr(declaration, key)]
    files += [key for key in _MAYBE_FILES if _is_file(getattr(declaration, key))]
    if not files:
        return ""
    return (
        f"; files do not travel ({', '.join(files)}): put the same ones there, or register it "
        "there by hand"
    )


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("/", "file:"))
