# Modules that are needed now and then: imported where they are used, and given back here. What a
# function or a class of theirs still refers to stays in memory all the same, so whoever keeps one
# of those keeps the module.

import asyncio
import gc
import sys


# Loads modules one after the other, and lets the other tasks have their turn in between: to read
# one from the app's filesystem takes a chip 10 ms and more. What they import comes before them.
async def preload(*names):
    for name in names:
        __import__(name)
        await asyncio.sleep_ms(0)


def unload(*names):
    for name in names:
        module = sys.modules.pop(name, None)
        package, _, last = name.rpartition(".")
        if module and package in sys.modules and hasattr(sys.modules[package], last):
            delattr(sys.modules[package], last)
    gc.collect()
