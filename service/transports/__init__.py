"""The transports of client connections: WebSocket, and the gate before it."""
