"""HTTP: the server API, health, metrics, routing, and hooks over HTTP."""
