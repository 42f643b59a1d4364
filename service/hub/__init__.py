"""Channels, their listeners, and the way between publisher and listener."""
