"""The simulated agent and the page of development that shows what it does."""
