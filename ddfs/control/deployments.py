"""Deployments behind the API."""

from __future__ import annotations

import uuid

import trio
from fastapi import APIRouter, Request

from ddfs import errors
from ddfs.clone import DEFAULT_POOL
from ddfs.control.deploy_messages import Deploy, DeployedDomain, Obstacles
from ddfs.control.service import Deploying
from ddfs.deploy import Deployments, DeployOrder
from ddfs.templates import Templates


class HostDeployments:
    """Implements :class:`ddfs.control.service.Deploying`."""

    def __init__(self, deployments: Deployments, templates: Templates) -> None:
        self._deployments = deployments
        self._templates = templates

    async def obstacles(self, request: Deploy) -> Obstacles:
        """Why this host cannot run it."""
        found = await self._deployments.judge(_order(request))
        return Obstacles(tuple(found.obstacles), found.knows_template)

    async def deploy(self, request: Deploy, token: str) -> DeployedDomain:
        """Make it, and start it; lent until it is confirmed."""
        made = await self._deployments.make(_order(request), token)
        seed = str(made.seed) if made.seed else None
        return DeployedDomain(made.name, made.uuid, str(made.disk), seed)

    async def confirm(self, token: str) -> None:
        """It stays."""
        await self._deployments.confirm(token)

    async def withdraw(self, token: str) -> None:
        """Take it back."""
        await self._deployments.withdraw(token)

    async def discard(self, name: str) -> None:
        """Delete what an unfinished fetch left."""
        await self._templates.discard(name)


def _order(request: Deploy) -> DeployOrder:
    return DeployOrder(
        template=request.template,
        name=request.name,
        pool=request.pool or DEFAULT_POOL,
        memory_mib=request.memory_mib,
        vcpus=request.vcpus,
        disk_size=request.disk_size,
        network=request.network,
        arch=request.arch,
        user_data=request.user_data.encode() if request.user_data is not None else None,
        document=request.xml,
        untested=request.untested,
    )


def routes(deploying: Deploying) -> APIRouter:
    """All of them; not on the socket that only reads."""
    router = APIRouter()

    @router.post("/v1/deployments/obstacles")
    async def obstacles(request: Deploy) -> Obstacles:
        """Why this host cannot run a domain, without changing anything."""
        return await deploying.obstacles(request)

    @router.post("/v1/deployments", status_code=201)
    async def deploy(request: Deploy, caller: Request) -> DeployedDomain:
        """Makes a disk, a seed and a domain from a template that is here, and starts it.

        If the caller hangs up before the answer, all of it is taken back.
        """
        return await _while_listening(caller, deploying, request)

    @router.put("/v1/deployments/{token}", status_code=204)
    async def confirm(token: str) -> None:
        """Confirms a deployment that was asked for with this token: it stays."""
        await deploying.confirm(token)

    @router.delete("/v1/deployments/{token}", status_code=204)
    async def withdraw(token: str) -> None:
        """Ends a deployment with this token, unless it is confirmed; then nothing of it is left."""
        await deploying.withdraw(token)

    @router.delete("/v1/templates/{name}/partial", status_code=204)
    async def discard(name: str) -> None:
        """Deletes what an unfinished fetch left. One that runs is refused."""
        await deploying.discard(name)

    return router


async def _while_listening(
    caller: Request, deploying: Deploying, request: Deploy
) -> DeployedDomain:
    """Deploys unless the caller hangs up: nobody would know of the domain, and whoever lost the
    connection tries the next host.
    """
    token = request.token or uuid.uuid4().hex
    made: DeployedDomain | None = None
    failure: Exception | None = None
    hung_up = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_at_end, caller, nursery.cancel_scope, hung_up)
        try:
            made = await deploying.deploy(request, token)
        except Exception as error:
            # Raised outside: a nursery would wrap it.
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if made is None or hung_up.is_set():
        await deploying.withdraw(token)
        raise errors.NotDeployedError(f"{request.name}: taken back, since the caller hung up")
    if request.token is None:
        await deploying.confirm(token)
    return made


async def _cancel_at_end(caller: Request, scope: trio.CancelScope, hung_up: trio.Event) -> None:
    # The body has been read; what comes after it is the end of the connection.
    while (await caller.receive())["type"] != "http.disconnect":
        pass
    hung_up.set()
    scope.cancel()
