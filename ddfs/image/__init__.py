"""What an image is, and which files a domain's disks stand on.

:mod:`~ddfs.image.chain` is standard library only, for the hook; :mod:`~ddfs.image.inspect`
is the only home of oslo.utils. This module imports neither, so that one can be had
without the other.
"""
