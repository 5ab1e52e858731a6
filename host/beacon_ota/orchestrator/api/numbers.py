"""The numbers that queries and headers may hold."""

from typing import Annotated

from annotated_types import Ge, Le

# Of a stored row: what the databases can hold, and no more (SQLite refuses it by an exception).
RowId = Annotated[int, Ge(0), Le(2**63 - 1)]
