"""Verifications behind the API: begin one, look how far it is, end it."""

from __future__ import annotations

from fastapi import APIRouter

from ddfs.control.version_messages import DamagedBytes, Verification, Verify
from ddfs.templates import Templates
from ddfs.templates.verification import Job, Verifications


def verify_routes(templates: Templates, verifications: Verifications) -> APIRouter:
    """The routes, for the socket that changes things."""
    router = APIRouter()

    def told(job: Job) -> Verification:
        published = templates.published(job.template)
        return Verification(
            job.template.name,
            published.path if published else None,
            job.stage.value,
            job.size,
            job.bytes_done,
            tuple(DamagedBytes(each.start, each.end) for each in job.damaged),
            job.can_tell,
            str(job.error) if job.error else None,
            job.error.kind() if job.error else None,
        )

    @router.post("/v1/templates/{name}/verify")
    async def verify(name: str, request: Verify) -> Verification:
        """Begins to hash what is in primary storage, or joins who does; does not wait."""
        return told(verifications.start(name, repairs=request.repair))

    @router.get("/v1/templates/{name}/verify")
    async def verification(name: str) -> Verification:
        """How far it is, or how it ended."""
        return told(verifications.job(name))

    @router.delete("/v1/templates/{name}/verify")
    async def cancel(name: str) -> Verification:
        """Ends it."""
        return told(verifications.cancel(name))

    return router
