"""The protocol of one connection, without I/O."""
