"""The registered templates of this host: names, versions, and what they are bound to."""

from ddfs.templates.templates import Registration, Templates, order_for, progress_percent

__all__ = ["Registration", "Templates", "order_for", "progress_percent"]
