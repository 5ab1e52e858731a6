"""The interpreter's process, and the line to it."""
