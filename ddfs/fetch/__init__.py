"""The fetch engine: a manifest in, verified bytes out.

Importing this package costs nothing; its modules need trio, and load httpx only when a
document is read.
"""
