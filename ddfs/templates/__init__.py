"""The registered templates of this host: names, versions, and what they are bound to."""

from ddfs.templates.progress import progress_percent
from ddfs.templates.registration import Registration
from ddfs.templates.templates import Templates, order_for

__all__ = ["Registration", "Templates", "order_for", "progress_percent"]
