# Formats an exception for the journal, and names the failure of an attempt.

import io
import sys


# One line: the error, and the module and line at which it was raised.
def describe(error):
    text = io.StringIO()
    sys.print_exception(error, text)
    lines = text.getvalue().strip().split("\n")
    where = lines[-2].strip() if len(lines) > 2 else ""
    return lines[-1] + " " + where.replace('File "', "").replace('", line ', ":")


# Stage, code and detail of an exception that has ended an attempt, and is no Refused.
def classify(error):
    from net.http import HttpError
    from ota.slots import FlashError

    for kind, stage in ((FlashError, "flash"), (HttpError, "download")):
        if isinstance(error, kind):
            return stage, error.code, error.detail
    sys.print_exception(error)
    return "boot", "crash", describe(error)
