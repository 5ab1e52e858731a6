# Stage 0, second half: runs the app and sees to it that whatever ends it ends in a reset, with its
# reason in the journal. Only a person at the console (Ctrl-C) gets the interpreter's prompt.
# `note` and `crashes` are boot.py's: the port runs both files in one namespace.
# pyright: reportUndefinedVariable=false

import io
import sys
import time

import machine

try:
    import main

    main.run()
    raise RuntimeError("main returned")
except KeyboardInterrupt:
    raise
except BaseException as error:
    text = io.StringIO()
    sys.print_exception(error, text)
    text = text.getvalue().strip()
    print(text)
    text = text.split("\n")
    where = text[-2].strip().replace('File "', "").replace('", line ', ":")
    try:
        note("crash", text[-1] + " " + where)
    except OSError as failed:
        print("journal:", failed)

# The more crashes in a row, the slower: an operator can then read the console.
time.sleep(min(crashes, 20))
machine.reset()
