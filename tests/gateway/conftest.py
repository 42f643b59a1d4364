"""The application of the tests' gateway."""

from tests.gateway.application import application

__all__ = ["application"]
