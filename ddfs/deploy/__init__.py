"""New domains on this host from its templates: all of one, or nothing."""

from ddfs.deploy.deployments import CONFIRM_SECONDS, Deployments
from ddfs.deploy.order import Deployed, DeployOrder
from ddfs.deploy.ports import Facts

__all__ = ["CONFIRM_SECONDS", "DeployOrder", "Deployed", "Deployments", "Facts"]
