"""The interpreter's process, and the channel to it."""
