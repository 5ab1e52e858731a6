# Stage 0, second half: runs the app and sees to it that whatever ends it ends in a reset, with its
# reason in the journal. Only a person at the console (Ctrl-C) gets the interpreter's prompt.
# `note`, `crashes` and `failure` are boot.py's: the port runs both files in one namespace. Should
# they be missing, or the reason impossible to tell, the reset comes all the same.
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
        # The app may have used up the memory that telling takes.
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
        note("crash", text[-1] + " " + where)
    except Exception as failed:
        print("journal:", repr(failed))

# The more crashes in a row, the slower: an operator can then read the console.
try:
    time.sleep(min(crashes, 20))
except Exception as failed:
    print(repr(failed))
machine.reset()
