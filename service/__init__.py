"""Steadwire: real-time messaging for chat products, in one ASGI application."""
