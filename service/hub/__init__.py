"""Channels, their subscriptions, and delivery from the store to the subscribers."""
