"""HTTP below the application: protocol, bounds, headers, problem documents."""
