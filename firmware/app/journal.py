# What went wrong, kept over every kind of reset until the orchestrator has it: a ring of eight NVS
# records, [seq, utc, stage, code, detail]. Stage 0 writes into the same ring (boot.py's note), and
# so did older releases: what is read is held to the contract (wire/journal.py) like what is
# written.

from micropython import const
from modules import unload
from net import clock
from wire import journal as rule

_PLACES = const(8)
_LAST = const(0x1FFFFFFF)  # stage 0 takes a larger number for none that was counted up to


class Journal:
    def __init__(self, store):
        self._store = store
        entries = self._read_ring(True)
        self.newest = entries[-1][0] if entries else 0  # number of the newest entry
        self.newest_words = entries[-1][2:] if entries else None
        ack = store.number("jrn_ack")
        self.delivered = min(max(ack, 0), self.newest)
        if self.newest >= _LAST:
            import renumber

            renumber.restart_numbers(self, store, entries)
            renumber = None
            unload("renumber")
        elif self.delivered != ack:
            # What stage 0 writes next counts from the ring, and would pass for delivered.
            self._store.try_put("jrn_ack", self.delivered)

    # The same words again while nobody has fetched the first ones are not news, and NVS wears;
    # they are after entry `since`, which is where a trial began.
    def write(self, stage, code, detail="", since=0):
        print("journal:", stage, code, detail)
        self.append((clock.utc(), stage, code, detail), since)

    def append(self, said, since=0):
        seq = self.newest + 1
        entry = rule.repair_entry((seq,) + said)
        if not entry or entry[2:] == self.newest_words and self.newest > max(self.delivered, since):
            return
        place = "journal%d" % (seq % _PLACES)
        put = self._store.try_put
        # A full NVS has room again once the oldest entry is gone.
        if put(place, entry) or put(place, None) and put(place, entry):
            self.newest = seq
            self.newest_words = entry[2:]

    # The entries after `seq`, oldest first; by default those not delivered yet.
    def entries_since(self, seq=None):
        if seq is None:
            seq = self.delivered
        return [entry for entry in self._read_ring() if entry[0] > seq]

    # The orchestrator has stored everything up to `seq`. A number it cannot know is no news.
    def acknowledge(self, seq):
        if self.delivered < seq <= self.newest:
            self.delivered = seq
            self._store.try_put("jrn_ack", seq)

    # Oldest first, each number once: that is how the orchestrator takes them. Numbers beyond the
    # last one, which only damage makes, count as the last one for `damaged`, else not at all.
    def _read_ring(self, damaged=False):
        entries = []
        known = []
        for i in range(_PLACES):
            entry = self._store.record("journal%d" % i)
            if damaged and isinstance(entry, list) and entry and isinstance(entry[0], int):
                entry[0] = min(entry[0], rule.MAX_SEQ)
            entry = rule.repair_entry(entry)
            if entry and (damaged or entry[0] not in known):
                known.append(entry[0])
                entries.append(entry)
        entries.sort(key=_entry_seq)
        return entries


def _entry_seq(entry):
    return entry[0]
