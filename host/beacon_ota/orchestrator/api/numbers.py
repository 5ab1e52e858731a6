"""The numbers that queries and headers may hold."""

from typing import Annotated

from annotated_types import Ge, Le

# Of a stored row: what a column of either database holds (it is refused by an exception beyond).
RowId = Annotated[int, Ge(0), Le(2**31 - 1)]
