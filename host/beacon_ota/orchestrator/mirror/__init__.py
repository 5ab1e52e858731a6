"""A mirror, the orchestrator of a site: its exchange with the primary, its engine."""
