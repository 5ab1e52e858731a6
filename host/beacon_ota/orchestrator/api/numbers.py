"""The range of row numbers in queries and headers."""

from typing import Annotated

from annotated_types import Ge, Le

# The range of an integer column of either database; larger numbers raise an exception there.
ROW_ID_MAX = 2**31 - 1
RowId = Annotated[int, Ge(0), Le(ROW_ID_MAX)]
