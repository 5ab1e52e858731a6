# What an exception looks like in the journal.

import io
import sys


# One line for a journal entry: the error, and where in our code.
def describe_error(error):
    text = io.StringIO()
    sys.print_exception(error, text)
    lines = text.getvalue().strip().split("\n")
    where = lines[-2].strip() if len(lines) > 2 else ""
    return lines[-1] + " " + where.replace('File "', "").replace('", line ', ":")
