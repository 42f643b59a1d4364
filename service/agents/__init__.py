"""Agent runs: AG-UI events, threads, runs and those who follow them."""
