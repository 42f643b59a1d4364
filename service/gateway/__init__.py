"""The gateway: clients whose sockets end at an API Gateway WebSocket API."""
