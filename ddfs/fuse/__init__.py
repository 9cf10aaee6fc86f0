"""The template pool as the kernel sees it: the only home of pyfuse3.

It shows what a :class:`ddfs.fuse.view.TemplateView` tells it, and knows nothing of where the
bytes come from.
"""
