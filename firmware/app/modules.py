# Loads modules that are needed now and then, and unloads them again: bytecode from a filesystem is
# held in RAM. A module stays in memory, unloaded or not, as long as a function or a class of it is
# still referred to.
#
# Several names are one text, separated by blanks: each string of a tuple would take 64 bytes.

import asyncio
import gc
import sys


# Loads modules one after the other, dependencies first, and gives the other tasks their turn in
# between: reading one from the app's filesystem takes a chip 10 ms and more.
async def preload(names):
    for name in names.split():
        __import__(name)
        await asyncio.sleep_ms(0)


def unload(names):
    _drop(names)
    gc.collect()


def _drop(names):
    for name in names.split():
        module = sys.modules.pop(name, None)
        package, _, last = name.rpartition(".")
        if module and package in sys.modules and hasattr(sys.modules[package], last):
            delattr(sys.modules[package], last)


# Loads a module for one call of a function.
def use(path, name, *args):
    __import__(path)
    try:
        return getattr(sys.modules[path], name)(*args)
    finally:
        unload(path)


# Loads modules for one call of an async function of the last one. Their memory is collected by a
# task of its own, whose stack is short: the collector takes every word on the stack that was left
# there for a reference, and would keep modules that only such words refer to.
async def call(names, name, *args):
    await preload(names)
    try:
        return await getattr(sys.modules[names.split()[-1]], name)(*args)
    finally:
        _drop(names)
        await asyncio.create_task(_collect())


async def _collect():
    gc.collect()
