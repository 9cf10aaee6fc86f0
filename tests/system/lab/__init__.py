"""A host for ddfs, made and thrown away: shared by the system tests, the demo and the benchmark.

Standard library only. Whoever uses it puts ``tests/system`` on ``sys.path`` and runs inside
:mod:`lab.namespace`.
"""
