"""What the commands share: the settings, the client, and names as people type them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddfs import config, errors
from ddfs.model import ImageFormat
from ddfs.names import split_version

if TYPE_CHECKING:
    from ddfs.control.client import Client
    from ddfs.control.messages import TemplateStatus

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Session:
    """One run of ``ddfs``. Settings and client are made when a command asks for them."""

    def __init__(self, config_option: str | None) -> None:
        self.config_option = config_option

    @cached_property
    def settings(self) -> config.Settings:
        """From ``--config``, ``$DDFS_CONFIG`` or the default; ConfigError."""
        return config.load(self.config_option)

    @cached_property
    def client(self) -> Client:
        """For the daemon of these settings."""
        from ddfs.control.client import Client

        return Client(self.settings.socket, self.settings.reader_socket)

    def template_names(self, texts: Sequence[str]) -> list[str]:
        """The names of templates that *texts* mean, each once, in order."""
        return list(dict.fromkeys(self.template_name(text) for text in texts))

    def template_name(self, text: str) -> str:
        """The name of the template that *text* means.

        *text* is ``NAME`` (the newest version), ``NAME@N`` (that one), or means exactly one
        by its file: ``NAME.FORMAT`` or a path in the mount. A name may itself end in
        the suffix of a format, so that only the daemon knows: it is asked where that is so.
        Raises UnknownTemplateError when there is none, also when only the format differs, and
        InvalidValueError when two are meant: one by its name, one by its file's.
        """
        if "/" in text:
            return self._name_of_file(self._file_name(text))
        if not text:
            raise _unknown(text)
        if _without_suffix(text) == text:
            return text
        named = self._template(text)
        shown = self._template(_exact(_without_suffix(text)))
        if shown is not None and shown.file_name != text:
            shown = None
        if named is not None and shown is not None:
            raise errors.InvalidValueError(
                f"{text} is the name of {named.path}, and the file of {shown.path}: "
                "give one of these paths"
            )
        found = named or shown
        if found is None:
            raise _unknown(text)
        return found.typed_name

    def _name_of_file(self, file_name: str) -> str:
        found = self._template(_exact(_without_suffix(file_name)))
        if found is None or found.file_name != file_name:
            raise _unknown(file_name)
        return found.typed_name

    def _template(self, name: str) -> TemplateStatus | None:
        try:
            return self.client.template(name)
        except errors.UnknownTemplateError:
            return None

    def _file_name(self, text: str) -> str:
        # Lexically only: asking about a path in the mount would ask the daemon, and hang
        # where it is dead.
        path = Path(os.path.abspath(text))
        if path.parent != self.settings.templates_dir:
            raise errors.InvalidValueError(
                f"{text} is not in {self.settings.templates_dir}: give the name of a template"
            )
        return path.name


def session_of(context: typer.Context) -> Session:
    """The session of the running command."""
    found = context.find_object(Session)
    assert found is not None
    return found


def complete_template(context: typer.Context, incomplete: str) -> list[str]:
    """For the shell: the templates whose names begin so. Never fails."""
    root = context.find_root()
    try:
        known = Session(root.params.get("config")).client.templates()
    except errors.DdfsError:
        return []
    return [status.name for status in known if status.name.startswith(incomplete)]


def _unknown(text: str) -> errors.UnknownTemplateError:
    return errors.UnknownTemplateError(
        f"no template is called {text!r}; ddfs template list shows those there are"
    )


def _without_suffix(file_name: str) -> str:
    name, dot, suffix = file_name.rpartition(".")
    is_format = dot and name and suffix in {known.value for known in ImageFormat}
    return name if is_format else file_name


def _exact(name: str) -> str:
    """A file's name without its suffix as the name of that version: plain is the first."""
    return name if split_version(name)[1] else f"{name}@1"
