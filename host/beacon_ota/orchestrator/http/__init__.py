"""HTTP without the application: protocol, bounds, headers, refusals."""
