"""Versions and declarations behind the API: checks, updates, and a catalogue made like a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from fastapi import APIRouter

from ddfs import errors
from ddfs.control.messages import AddTemplate, TemplateStatus
from ddfs.control.version_messages import (
    Declared,
    Removed,
    SourceCheck,
    Updated,
    UpdateTemplate,
)
from ddfs.declaration import Declaration
from ddfs.model import Template
from ddfs.templates import Templates
from ddfs.templates.versions import Versions
from ddfs.versions import Verdict

Remove = Callable[[Template, bool], Awaitable[None]]


class VersionService(Protocol):
    """What the routes need. Errors are answered as everywhere in the API."""

    async def check(self, name: str) -> SourceCheck:
        """Asks the source of one."""
        ...

    async def update(self, name: str, request: UpdateTemplate) -> Updated:
        """Makes a version of what the source is now, if it is none yet."""
        ...

    def declared(self) -> Declared:
        """What is declared about the newest version of each name."""
        ...

    async def declare(self, name: str, request: AddTemplate) -> Updated:
        """Makes *name* what is declared."""
        ...

    async def remove_versions(self, name: str, purge: bool) -> Removed:
        """Forgets all versions of *name* that nothing uses."""
        ...


class Versioning:
    """Implements :class:`VersionService`.

    ``status`` is how a template is told to the outside, ``remove`` forgets one that nothing
    uses, ``check_primary`` refuses a primary storage that is not in the settings: all are the
    host's.
    """

    def __init__(
        self,
        templates: Templates,
        versions: Versions,
        status: Callable[[Template], TemplateStatus],
        remove: Remove,
        check_primary: Callable[[str | None], None],
    ) -> None:
        self._templates = templates
        self._versions = versions
        self._status = status
        self._remove = remove
        self._check_primary = check_primary

    async def check(self, name: str) -> SourceCheck:
        """One check, now."""
        family = self._templates.newest(name).family
        state = await self._versions.check(family)
        verdict = state.verdict or Verdict.UNREACHABLE
        return SourceCheck(family, verdict.value, state.message, state.checked_at or 0.0)

    async def update(self, name: str, request: UpdateTemplate) -> Updated:
        """A new version, or the one that there is."""
        changes = {k: v for k, v in dataclasses.asdict(request).items() if v is not None}
        template, is_new = await self._versions.update(name, changes)
        return Updated(self._status(template), is_new)

    def declared(self) -> Declared:
        """From memory."""
        newest = [self._templates.newest(family) for family in self._templates.families()]
        newest.sort(key=lambda template: template.family)
        return Declared(
            tuple(_as_message(t.family, self._templates.declaration(t)) for t in newest)
        )

    async def declare(self, name: str, request: AddTemplate) -> Updated:
        """A template, a version, or other words for the one that there is."""
        plain = dataclasses.asdict(request)
        if plain.pop("name") != name:
            raise errors.InvalidValueError(f"{name}: the body names another template")
        declaration = Declaration.from_plain(plain)
        self._check_primary(declaration.primary)
        template, is_new = await self._versions.declare(name, declaration)
        return Updated(self._status(template), is_new)

    async def remove_versions(self, name: str, purge: bool) -> Removed:
        """Newest first, so that what stays is what was there before."""
        family = self._templates.newest(name).family
        gone, kept = [], []
        for template in reversed(self._templates.versions(family)):
            try:
                await self._remove(template, purge)
                gone.append(template.name)
            except errors.TemplateInUseError as error:
                kept.append(str(error))
        if not gone and kept:
            raise errors.TemplateInUseError("; ".join(kept))
        return Removed(tuple(gone), tuple(kept))


def _as_message(name: str, declaration: Declaration) -> AddTemplate:
    plain: dict[str, Any] = declaration.as_plain()
    plain = {key: tuple(v) if isinstance(v, list) else v for key, v in plain.items()}
    return AddTemplate(name=name, **plain)


def version_routes(service: VersionService) -> APIRouter:
    """The routes, for the socket that changes things: declarations have secrets."""
    router = APIRouter()

    @router.post("/v1/templates/{name}/check")
    async def check(name: str) -> SourceCheck:
        """Asks the source of a template whether it has changed."""
        return await service.check(name)

    @router.post("/v1/templates/{name}/update")
    async def update(name: str, request: UpdateTemplate) -> Updated:
        """Makes a new version of what the source is now, if it is none yet."""
        return await service.update(name, request)

    @router.get("/v1/declarations")
    async def declarations() -> Declared:
        """What is declared about every name, secrets included."""
        return service.declared()

    @router.put("/v1/declarations/{name}")
    async def declare(name: str, request: AddTemplate) -> Updated:
        """Makes a name what is declared: registered, changed, or with a new version."""
        return await service.declare(name, request)

    @router.delete("/v1/declarations/{name}")
    async def remove_versions(name: str, purge: bool = False) -> Removed:
        """Forgets all versions of a name that nothing uses."""
        return await service.remove_versions(name, purge)

    return router
