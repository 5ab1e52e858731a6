"""Power cuts at every flash operation of an update."""
