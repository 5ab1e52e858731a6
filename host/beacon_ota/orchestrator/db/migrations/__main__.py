"""Bring the database whose URL is on standard input to the newest schema.

Standard output says why it could not be done; the caller shows that.
"""

import sys

from sqlalchemy.exc import SQLAlchemyError

from beacon_ota import lifeline
from beacon_ota.orchestrator.db.connection import connect, describe_error
from beacon_ota.orchestrator.db.schema_version import run_migrations

lifeline.hold_on_to_starter()
engine = connect(sys.stdin.readline().strip())
try:
    run_migrations(engine)
except SQLAlchemyError as error:
    sys.exit(print(describe_error(error)) or 1)
except Exception as error:
    sys.exit(print(f"{type(error).__name__}: {error}") or 1)
finally:
    engine.dispose()
