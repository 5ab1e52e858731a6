"""The schema's history, and what brings a database up to it."""
