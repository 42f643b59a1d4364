"""The Store and State ports on one SQLite file, for a single process."""
