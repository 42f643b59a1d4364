"""The wire: text in, commands out; replies and pushes to text."""
