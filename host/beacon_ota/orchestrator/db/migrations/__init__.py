"""Migrations: the history of the database's schema."""
