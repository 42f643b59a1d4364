"""The way from a socket to a session and back."""
