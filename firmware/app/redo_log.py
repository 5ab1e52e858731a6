# Several changes of NVS as one (docs/contracts.md, section 7, `spare`): written down before any of
# them is made, done again after a power cut, undone where NVS does not take all of them. Loaded
# for as long as that takes.

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
        old = {key: _read_value(store, key) for key in values}
        store.nvs.set_blob(_KEY, log)
        try:
            replay(store, log)
        except OSError:
            _restore(store, old)
            raise


def _read_value(store, key):
    try:
        return store.nvs.get_i32(key)
    except OSError:
        return store.blob(key, _RECORD) or None


# NVS did not take all of it: back to what there was. `spare` goes first, for it takes the room that
# the old values may need: ESP-IDF can lose one whose replacement found none.
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


# What the log says. Raises OSError when NVS does not take it, ValueError or IndexError for bytes
# that are no log.
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
