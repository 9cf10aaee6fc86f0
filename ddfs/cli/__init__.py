"""The command line: one short function per command, each one API call.

``main`` is the entry point and the only place that turns errors into lines and exit codes.
``app`` puts the commands together; ``session`` is what they share. Modules are imported
when their command runs: ``ddfs fetch`` has 0.2 s until its first request.
"""
