"""Kinds of primary storage: where complete templates live on this host.

One kind so far, :class:`ddfs.primary.directory.DirectoryStorage`. All of it is synchronous
and meant for threads; every class says which of its methods may run at the same time.
"""
