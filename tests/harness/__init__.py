"""Harness of the end-to-end and chaos tests: a server, clients, a bad network.

Tests see the service as its clients do, from outside; only `emulators` and `backends`
import of it, namely what a table looks like.
"""
