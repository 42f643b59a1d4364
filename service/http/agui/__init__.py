"""AG-UI over HTTP: the relay to agents, the threads' events, and what agents push."""
