"""Disks for domains, made from templates."""

from ddfs.clone.clones import DEFAULT_POOL, Clone, CloneOrder, Clones
from ddfs.clone.images import Images, RbdPools, Undo

__all__ = ["DEFAULT_POOL", "Clone", "CloneOrder", "Clones", "Images", "RbdPools", "Undo"]
