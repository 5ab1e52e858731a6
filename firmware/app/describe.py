# Formats an exception for the journal.

import io
import sys


# One line: the error, and the file and line at which it was raised.
def describe(error):
    text = io.StringIO()
    sys.print_exception(error, text)
    lines = text.getvalue().strip().split("\n")
    where = lines[-2].strip() if len(lines) > 2 else ""
    return lines[-1] + " " + where.replace('File "', "").replace('", line ', ":")
