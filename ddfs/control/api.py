"""HTTP over a :class:`~ddfs.control.service.Service`: one short function per route.

Every route is ``async``: a plain function would be run in a thread, and the service lives
in the event loop. What is raised becomes a :class:`~ddfs.control.messages.Problem`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import ddfs
from ddfs import errors
from ddfs.control import deployments, keeping, problems
from ddfs.control.action_routes import actions
from ddfs.control.body import BodyLimit
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
from ddfs.control.service import Service

# Prometheus' text format, version 0.0.4.
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    "default": {"model": Problem, "description": "What went wrong, and what to do about it"}
}


def make_app(service: Service, more: Sequence[APIRouter] = ()) -> FastAPI:
    """Everything, for the socket that the operator and the hook use.

    *more* are the routes of services that stand beside *service*.
    """
    app = _make_app("ddfs", _reading(service), "")
    for routes in (_templates, _fetches, _pool, _domains, _gate, actions):
        app.include_router(routes(service), responses=_PROBLEMS)
    app.include_router(keeping.routes(service.keeping), responses=_PROBLEMS)
    app.include_router(deployments.routes(service.deploying), responses=_PROBLEMS)
    for router in more:
        app.include_router(router, responses=_PROBLEMS)
    return app


def make_reader_app(service: Service) -> FastAPI:
    """Only what changes nothing, and starts no fetch: for everybody on this host."""
    return _make_app("ddfs, read only", _reading(service), "; this socket only reads")


def _make_app(title: str, reading: APIRouter, hint: str) -> FastAPI:
    # docs_url: its pages load scripts from the network. strict_content_type guards against
    # browsers, which do not reach a Unix socket; BodyLimit drops the header.
    app = FastAPI(
        title=title,
        version=ddfs.__version__,
        docs_url=None,
        redoc_url=None,
        strict_content_type=False,
    )
    app.include_router(reading, responses=_PROBLEMS)
    app.add_exception_handler(errors.DdfsError, _on_ddfs_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _make_http_handler(hint))
    app.add_middleware(BodyLimit)
    return app


def _reading(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/status")
    async def status() -> DaemonStatus:
        """The daemon in figures."""
        return service.daemon_status()

    @router.get("/v1/templates")
    async def list_templates(
        name: Annotated[list[str] | None, Query(description="only these")] = None,
    ) -> list[TemplateStatus]:
        """All templates and how far they are, or those asked for by name."""
        return service.templates() if name is None else [service.template(n) for n in name]

    @router.get("/v1/templates/{name}")
    async def show_template(name: str) -> TemplateStatus:
        """One template."""
        return service.template(name)

    @router.get("/v1/limits")
    async def limits() -> Limits:
        """What fetches may take: bandwidth, connections, how many at once."""
        return service.limits()

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """The metrics in Prometheus' text format."""
        return Response(service.metrics(), headers={"content-type": METRICS_TYPE})

    return router


def _templates(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/templates", status_code=201)
    async def add_template(request: AddTemplate) -> TemplateStatus:
        """Registers a template; asks its source and its mirrors for what is needed."""
        return await service.add_template(request)

    @router.delete("/v1/templates/{name}", status_code=204)
    async def remove_template(name: str, purge: bool = False) -> None:
        """Forgets a template; with `purge` its published file is deleted too."""
        await service.remove_template(name, purge)

    return router


def _fetches(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/prefetch")
    async def prefetch(request: Prefetch) -> list[TemplateStatus]:
        """Starts the fetches of these templates, also after a failure, and does not wait."""
        if request.seeds:
            return await service.prefetch_seeded(request.names, request.seeds)
        return service.prefetch(request.names)

    @router.post("/v1/cancel")
    async def cancel(request: Names) -> list[TemplateStatus]:
        """Ends the fetches of these templates; what is here is kept."""
        return service.cancel(request.names)

    @router.put("/v1/limits")
    async def change_limits(request: ChangeLimits) -> Limits:
        """Changes what fetches may take, also those that run, until the daemon ends."""
        return service.change_limits(request)

    return router


def _pool(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/pool")
    async def define_pool(request: DefinePool) -> PoolStatus:
        """Defines and starts the libvirt pool on the mount, or adopts the one there."""
        return await service.define_pool(request.name)

    @router.post("/v1/pool/refresh")
    async def refresh_pool() -> PoolStatus:
        """Makes libvirt look at the pool again."""
        return await service.refresh_pool()

    @router.delete("/v1/pool")
    async def undefine_pool() -> PoolStatus:
        """Takes the pool away from libvirt; deletes nothing in it."""
        return await service.undefine_pool()

    return router


def _domains(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/domains/{domain}/templates")
    async def domain_templates(domain: str) -> list[TemplateStatus]:
        """The templates that a domain needs; their fetches are started."""
        return await service.domain_templates(domain)

    @router.post("/v1/domains/{domain}/start", status_code=204)
    async def start_domain(domain: str) -> None:
        """Starts a domain."""
        await service.start_domain(domain)

    return router


def _gate(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/gate")
    async def gate(request: GateQuestion) -> GateAnswer:
        """May this domain start? Asked by the libvirt hook; waits at most `gate.wait`."""
        return await service.gate(request)

    return router


def _answer(status: int, problem: Problem) -> JSONResponse:
    return JSONResponse({"kind": problem.kind, "message": problem.message}, status)


async def _on_ddfs_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.DdfsError)
    return _answer(error.http_status, problems.problem_of(error))


async def _on_invalid_request(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    text = f"{where}: {first['msg']}"
    if first["type"] == "unexpected_keyword_argument":
        # Most often: ddfs was upgraded, and this is still the process of before.
        text += f"; this daemon, of version {ddfs.__version__}, does not know it: if the client is "
        text += "newer, restart the daemon (systemctl restart ddfs)"
    problem = errors.InvalidValueError(text)
    return _answer(problem.http_status, problems.problem_of(problem))


def _make_http_handler(hint: str) -> Callable[[Request, Exception], Any]:
    async def on_http_exception(request: Request, error: Exception) -> Response:
        # Only the framework raises these: no such path, no such method, a broken body.
        assert isinstance(error, HTTPException)
        text = f"{request.method} {request.url.path}: {error.detail}{hint}"
        problem = problems.problem_of(errors.InvalidValueError(text))
        return _answer(error.status_code, problem)

    return on_http_exception
