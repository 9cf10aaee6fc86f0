"""The control API on a Unix socket, its client, and the messages between them.

``messages`` crosses the socket; ``service`` is what the API asks of the daemon; ``api``
makes HTTP of it; ``server`` puts it on the sockets; ``client`` is the other end.
"""
