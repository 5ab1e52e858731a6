"""The database: one writer with group commit, its schema, SQL."""
