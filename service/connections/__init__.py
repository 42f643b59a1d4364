"""Connections that this process holds: their sockets, limits, liveness and end."""
