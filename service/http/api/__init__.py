"""The server API: a module a noun."""
