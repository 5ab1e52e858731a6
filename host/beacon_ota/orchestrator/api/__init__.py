"""The administrators' API: FastAPI under ``/api``, one module per resource."""
