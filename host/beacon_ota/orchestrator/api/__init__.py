"""The administrators' side: FastAPI under ``/api``, one module per noun."""
