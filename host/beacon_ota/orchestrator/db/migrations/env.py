"""Alembic's entry: the connection comes from the caller."""

from alembic import context

from beacon_ota.orchestrator.db.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
