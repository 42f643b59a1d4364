"""Authentication and permissions: tokens, tickets, revocations, keys of the server API.

`Verifier` verifies tokens without I/O; `jwks` fetches the keys that it lacks, and
`authenticator` makes the answers to clients of both.
"""
