"""A distribution point on a site: its exchange with the primary, its engine."""
