"""The range of row numbers in queries and headers."""

from typing import Annotated

from annotated_types import Ge, Le

# Of a stored row: what a column of either database holds (it is refused by an exception beyond).
ROW_ID_MAX = 2**31 - 1
RowId = Annotated[int, Ge(0), Le(ROW_ID_MAX)]
