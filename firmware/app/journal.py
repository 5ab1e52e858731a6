# What went wrong, kept over every kind of reset until the orchestrator has it: a ring of eight NVS
# records, [seq, utc, stage, code, detail]. Stage 0 writes into the same ring (boot.py's note).

from micropython import const
from net import clock

_PLACES = const(8)
_DETAIL = const(80)  # characters


class Journal:
    def __init__(self, store):
        self._store = store
        self._ack = self._head = store.number("jrn_ack")
        self._last = None
        for entry in self._read():
            self._head = max(self._head, entry[0])
            self._last = entry[2:]

    # The number of the newest entry: a mark in time for whoever wants "since".
    def head(self):
        return self._head

    # The same words again while nobody has fetched the first ones are not news, and NVS wears;
    # they are after entry `since`, which is where a trial began.
    def write(self, stage, code, detail="", since=0):
        words = [stage, code, detail[:_DETAIL]]
        print("journal:", stage, code, detail)
        if words == self._last and self._head > max(self._ack, since):
            return
        seq = self._head + 1
        try:
            self._store.put("journal%d" % (seq % _PLACES), [seq, clock.utc()] + words)
        except OSError as error:
            print("journal: not stored:", error)
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
            try:
                self._store.put("jrn_ack", seq)
            except OSError as error:
                print("journal: acknowledgement not stored:", error)

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
        and entry[0] > 0
        and all(isinstance(text, str) and len(text) <= _DETAIL for text in entry[2:])
    )
