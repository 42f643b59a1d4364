"""Stores of publications and shared state: SQLite, DynamoDB, and what both use."""
