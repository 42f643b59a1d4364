"""Where publications live."""
