"""What answers plain HTTP."""
