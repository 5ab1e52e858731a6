# What went wrong, kept over every kind of reset until the orchestrator has it: a ring of eight NVS
# records, [seq, utc, stage, code, detail]. Stage 0 writes into the same ring (boot.py's note).

from micropython import const
from net import clock

_PLACES = const(8)
_DETAIL = const(80)  # characters
_LAST = const(0x1FFFFFFF)  # number of an entry; a larger one is none that was counted up to


class Journal:
    def __init__(self, store):
        self._store = store
        self._ack = store.number("jrn_ack")
        if not 0 <= self._ack < _LAST:
            self._ack = 0
        self._head = self._ack
        self._last = None
        for entry in self._read():
            self._head = max(self._head, entry[0])
            self._last = entry[2:]

    # The number of the newest entry: a mark in time for whoever wants "since".
    def head(self):
        return self._head

    # The same words again while nobody has fetched the first ones are not news, and NVS wears.
    def write(self, stage, code, detail=""):
        words = [stage, code, detail[:_DETAIL]]
        print("journal:", stage, code, detail)
        if words == self._last and self._head > self._ack:
            return
        seq = self._head + 1
        place = "journal%d" % (seq % _PLACES)
        entry = [seq, clock.utc()] + words
        # A full NVS has room again once the oldest entry is gone.
        put = self._store.try_put
        if not put(place, entry) and not (put(place, None) and put(place, entry)):
            return
        self._head = seq
        self._last = words

    # The entries after `seq`, oldest first; by default those not delivered yet.
    def since(self, seq=None):
        if seq is None:
            seq = self._ack
        return [entry for entry in self._read() if entry[0] > seq]

    # The orchestrator has stored everything up to `seq`. A number it cannot know is no news.
    def acked(self, seq):
        if self._ack < seq <= self._head:
            self._ack = seq
            self._store.try_put("jrn_ack", seq)

    def _read(self):
        entries = []
        for i in range(_PLACES):
            entry = self._store.record("journal%d" % i)
            if _is_entry(entry):
                entries.append(entry)
        entries.sort(key=_seq)
        return entries


def _seq(entry):
    return entry[0]


# NVS is durable, not infallible: what does not look like an entry is not delivered as one.
def _is_entry(entry):
    return (
        isinstance(entry, list)
        and len(entry) == 5
        and isinstance(entry[0], int)
        and isinstance(entry[1], int)
        and 0 < entry[0] < _LAST
        and all(isinstance(text, str) and len(text) <= _DETAIL for text in entry[2:])
    )
