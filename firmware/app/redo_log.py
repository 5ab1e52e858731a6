# Changes several values of NVS as one (docs/contracts.md, section 7, `spare`). The redo log is
# written before the first change, replayed after a power cut, and undone when NVS does not take all
# of the changes.

from struct import pack, unpack_from

from micropython import const

_RECORD = const(1024)
_BLOB = const(0)
_NUMBER = const(1)
_NOTHING = const(2)
_KEY = const("spare")


# See Store.put_all.
def put_all(store, values):
    log = b""
    for key in values:
        value = values[key]
        kind = _BLOB
        if value is None:
            kind, value = _NOTHING, b""
        elif isinstance(value, int):
            kind, value = _NUMBER, pack(">i", value)
        log += bytes((len(key),)) + key.encode() + pack(">BH", kind, len(value)) + value
    if log:
        old = {key: _read(store, key) for key in values}
        store.nvs.set_blob(_KEY, log)
        try:
            replay(store, log)
        except OSError:
            _restore(store, old)
            raise


def _read(store, key):
    try:
        return store.nvs.get_i32(key)
    except OSError:
        return store.blob(key, _RECORD) or None


# Restores the old values when NVS did not take all of the new ones. The log is erased first,
# because the old values may need its room: ESP-IDF can lose a blob whose replacement found no room.
def _restore(store, old):
    for key in [_KEY] + list(old):
        value = old.get(key)
        try:
            if value is None:
                store.erase(key)
            elif isinstance(value, int):
                store.nvs.set_i32(key, value)
            else:
                store.nvs.set_blob(key, value)
        except OSError as error:
            print("settings: %s not as before: %s" % (key, error))


# Makes the changes of a log, then erases it. Raises OSError when NVS does not take them, ValueError
# or IndexError when the bytes are not a log.
def replay(store, log):
    at = 0
    while at < len(log):
        end = at + 1 + log[at]
        key = log[at + 1 : end].decode()
        kind, size = unpack_from(">BH", log, end)
        at = end + 3 + size
        value = log[end + 3 : at]
        if kind == _BLOB:
            store.nvs.set_blob(key, value)
        elif kind == _NUMBER:
            store.nvs.set_i32(key, unpack_from(">i", value)[0])
        else:
            store.erase(key)
    store.nvs.erase_key(_KEY)
    store.nvs.commit()
