"""ddfs: VM templates on a KVM host before a byte of them is there.

``ddfs/README.md`` is the map of the package. This module imports nothing, so that the
hook and the command line start fast.
"""

__version__ = "0.1.0"
