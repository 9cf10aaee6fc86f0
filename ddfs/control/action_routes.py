"""The routes of :class:`~ddfs.control.service.Actions`; see :mod:`ddfs.control.api`."""

from __future__ import annotations

from fastapi import APIRouter

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
from ddfs.control.service import Service


def actions(service: Service) -> APIRouter:
    """All of them. The socket that only reads has none: what they tell is about domains."""
    router = APIRouter()

    @router.post("/v1/gate/explain")
    async def explain_gate(request: ExplainGate) -> GateReport:
        """What the hook would say now about a domain, and why. Starts no fetch."""
        return await service.actions.explain_gate(request)

    @router.post("/v1/domains/{domain}/attach")
    async def attach(domain: str, request: AttachTemplate) -> AttachedDisk:
        """Gives a template that is here to a domain, as a medium or a read-only disk."""
        return await service.actions.attach(domain, request)

    @router.post("/v1/clones", status_code=201)
    async def clone(request: CloneTemplate) -> ClonedVolume:
        """Makes a disk from a template: an overlay on it, or a full copy."""
        return await service.actions.clone(request)

    @router.get("/v1/autostart")
    async def autostart_domains() -> list[AutostartDomain]:
        """The domains that are to be started at boot."""
        return await service.actions.autostart_domains()

    @router.put("/v1/domains/{domain}/autostart")
    async def set_autostart(domain: str, request: Autostart) -> AutostartDomain:
        """Marks a domain to be started at boot, or not any more."""
        return await service.actions.set_autostart(domain, request)

    return router
