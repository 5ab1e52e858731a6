# Stage 0, second half: runs the app, and resets the chip however the app ends, with the reason in
# the journal. Only Ctrl-C at the console leads to the interpreter's prompt.
#
# `journal_write`, `crashes` and `failure` come from boot.py: the port runs both files in one
# namespace. If they are missing, or the reason cannot be told, the chip is reset all the same.
# pyright: reportUndefinedVariable=false

import gc
import io
import sys
import time

import machine

try:
    if failure:
        raise failure
    import main

    main.run()
    raise RuntimeError("main returned")
except KeyboardInterrupt:
    raise
except BaseException as error:
    try:
        # The app may have used up the memory that this needs.
        main = None
        sys.modules.clear()
        gc.collect()
        text = io.StringIO()
        sys.print_exception(error, text)
        text = text.getvalue().strip()
        print(text)
        text = text.split("\n")
        where = text[-2].strip() if len(text) > 1 else ""
        where = where.replace('File "', "").replace('", line ', ":")
        journal_write("crash", text[-1] + " " + where)
    except Exception as failed:
        print("journal:", repr(failed))

# The delay grows with the crashes in a row, so that an operator can read the console.
try:
    time.sleep(min(crashes, 20))
except Exception as failed:
    print(repr(failed))
machine.reset()
