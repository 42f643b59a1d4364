"""Nouns, ports, errors and small pure mechanisms that every other folder builds on."""
