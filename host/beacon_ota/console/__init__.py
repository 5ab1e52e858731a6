"""Output on a terminal: tables, progress, JSON, and text that cannot control the terminal."""
