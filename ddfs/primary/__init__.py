"""Kinds of primary storage: where complete templates live on this host.

A directory of this host (:mod:`ddfs.primary.directory`), one that hosts share
(:mod:`ddfs.primary.shared`), and the volumes of a libvirt pool (:mod:`ddfs.primary.volumes`); the
latter two are directories as well, as far as what is unfinished goes. All of it is synchronous and
meant for threads; every class says which of its methods may run at the same time.
"""
