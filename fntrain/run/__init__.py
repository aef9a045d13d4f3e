"""The loop: fit, its events, its directory, and what happens when something goes wrong."""
