# The beacon's settings and records in NVS, the only memory that new releases, rollbacks and power
# cuts leave unchanged. Every write is durable and atomic by itself; there is no cache.

import json

from esp32 import NVS
from micropython import const
from modules import use

_TEXT = const(128)  # bytes; the longest setting is a URL
_RECORD = const(1024)
_LOG = const(1536)
_NOT_FOUND = const(-4354)
_SPARE = const("spare")
_RING = const("journal")  # prefix of the ring's keys, which are overwritten all the time

# The tunable numbers of the NVS record `policy`: name, default, lowest, highest. One text, because
# tuples would take three times the memory.
_TABLE = const(
    " poll_s 300 5 86400 "  # between polls when the orchestrator names no time
    " stall_s 20 2 300 "  # without a byte before a download counts as stalled
    " give_up_s 300 10 86400 "  # for a whole download with its retries
    " backoff_ms 2000 10 60000 "  # before the first retry; doubles five times
    " retry_s 30 1 3600 "  # after an attempt that failed; doubles up to 32 minutes
    " trial_s 180 5 720 "  # for the health check of a trial; stage 0 resets at 900
    " offline_ok 1 0 1 "  # may a trial be confirmed while the orchestrator is away?
    " join_s 15 2 120 "  # for one attempt to join a network
    " bluetooth 1 0 1 "  # 0: left alone, on boards and emulators that have none
    " strike_pin -1 -1 21 "  # GPIO that opens the door when access is granted; -1: none
    " strike_ms 3000 50 60000 "
    " healthy_s 120 1 3600 "  # of running before a confirmed release counts as no crash
    " blufi 2 0 2 "  # provisioning: 0 never, 1 new beacons and by button, 2 also when lost
    " open_s 300 30 3600 "  # for which the button opens it
    " lost_s 600 10 86400 "  # without any network before it opens by itself
    " legacy 0 0 1 "  # Espressif's own app may provision, once
    " button_pin 9 -1 21 "  # GPIO, low when pressed; -1: none
)


# name -> (default, lowest, highest).
class _Policy:
    def __iter__(self):
        return iter(_TABLE.split()[::4])

    def __getitem__(self, name):
        at = _TABLE.find(" %s " % name)
        if at < 0:
            raise KeyError(name)
        return [int(word) for word in _TABLE[at:].split(" ", 5)[2:5]]


POLICY = _Policy()


# Replaces an NVS that cannot be opened (damaged, or full before the namespace existed): reads find
# nothing and writes fail, but the beacon runs.
class _ClosedNvs:
    def __init__(self, code):
        self._code = code

    def _refuse(self, *_):
        raise OSError(self._code, "nvs cannot be opened")

    get_blob = get_i32 = set_blob = set_i32 = erase_key = commit = _refuse


# Reads never fail: a key that is missing, of another type, or longer than the limit reads as its
# default. Writes raise OSError when NVS does (it is full, or its flash is worn out); the old values
# are still there then, as far as the flash allows.
class Store:
    def __init__(self):
        try:
            self.nvs = NVS("beacon")  # one handle: they are never given back
        except OSError as error:
            print("settings:", error)
            self.nvs = _ClosedNvs(error.errno)
        self.replay()
        self.load_policy()

    def blob(self, key, limit=_TEXT):
        buf = bytearray(limit)
        try:
            size = self.nvs.get_blob(key, buf)
        except OSError:
            return b""
        return bytes(memoryview(buf)[:size])

    def text(self, key, default=""):
        try:
            return self.blob(key).decode() or default
        except UnicodeError:
            return default

    def number(self, key, default=0):
        try:
            return self.nvs.get_i32(key)
        except OSError:
            return default

    # A JSON value, None when there is none or it does not parse.
    def record(self, key):
        try:
            return json.loads(self.blob(key, _RECORD))
        except ValueError:
            return None

    # Bytes and text become blobs, numbers i32, anything else a JSON record; None erases.
    def put(self, key, value):
        if value is None:
            self.erase(key)
        elif isinstance(value, int):
            self.nvs.set_i32(key, value)
        else:
            if not isinstance(value, (bytes, str)):
                value = json.dumps(value)
            self._journalled_set(key, value if isinstance(value, bytes) else value.encode())
        self.nvs.commit()

    # Like put(), for values that the beacon can do without: False when NVS does not take it.
    def try_put(self, key, value):
        try:
            self.put(key, value)
        except OSError as error:
            print("settings:", key, error)
            return False
        return True

    # ESP-IDF can lose a blob when the power fails between writing its new data and its index: at
    # the next start the old data are taken for a duplicate. The new value is therefore also kept in
    # the redo log, the key `spare`, until the replacement is complete.
    def _journalled_set(self, key, value):
        old = self.blob(key, _RECORD)
        if old == value:
            return
        if old and not key.startswith(_RING):
            self.put_all({key: value})
        else:
            self.nvs.set_blob(key, value)

    # Writes all values or, when the power fails before the redo log is written, none of them.
    # `values` are bytes, numbers, or None to erase.
    def put_all(self, values):
        use("redo_log", "put_all", self, values)

    def erase(self, key):
        try:
            self.nvs.erase_key(key)
        except OSError as error:
            if error.errno != _NOT_FOUND:
                raise

    # If the redo log cannot be replayed (NVS full, foreign bytes), it is dropped: the beacon must
    # still start.
    def replay(self):
        log = self.blob(_SPARE, _LOG)
        if log:
            try:
                use("redo_log", "replay", self, log)
            except (OSError, ValueError, IndexError) as error:
                print("settings:", repr(error))
                self.try_put(_SPARE, None)

    # Called after `policy` has changed.
    def load_policy(self):
        policy = self.record("policy")
        self._policy = policy if isinstance(policy, dict) else {}

    # A tunable number, always within its bounds.
    def policy(self, name):
        default, low, high = POLICY[name]
        value = self._policy.get(name, default)
        if not isinstance(value, int):
            return default
        return min(max(value, low), high)

    # The policy as JSON with one number changed, for put_all().
    def policy_with(self, name, value):
        changed = self._policy.copy()
        changed[name] = value
        return json.dumps(changed).encode()
