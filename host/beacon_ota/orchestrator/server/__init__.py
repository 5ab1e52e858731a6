"""Processes and sockets: one process or several workers, TLS, the first token, the log."""
