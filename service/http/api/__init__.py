"""The server API: one module for each noun."""
