# Modules that are needed now and then: imported where they are used, and given back here. What a
# function or a class of theirs still refers to stays in memory all the same, so whoever keeps one
# of those keeps the module.

import gc
import sys


def forget(*names):
    for name in names:
        module = sys.modules.pop(name, None)
        package, _, last = name.rpartition(".")
        if module and package in sys.modules and hasattr(sys.modules[package], last):
            delattr(sys.modules[package], last)
    gc.collect()
