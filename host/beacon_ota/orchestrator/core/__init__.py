"""The state of the fleet in memory, and what moves it."""
