"""What the end-to-end and chaos tests are made of: a server, clients, a bad network.

Nothing here imports the service: tests see it as its clients do, from outside.
"""
