"""What Alembic runs for each command: the migrations, on the connection that it was given."""

from alembic import context

from serve_app.store.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,  # SQLite changes a column by making its table anew.
)
with context.begin_transaction():
    context.run_migrations()
