# The error journal: a ring of eight NVS records, [seq, utc, stage, code, detail], kept over every
# kind of reset until the orchestrator has received them. Stage 0 writes into the same ring
# (journal_write in boot.py), and so did older releases, so entries are checked against the contract
# (wire/journal.py) when they are read as well as when they are written.

from micropython import const
from modules import use
from net import clock
from wire import journal as rule

_PLACES = const(8)
_LAST = const(0x1FFFFFFF)  # stage 0 ignores larger numbers


class Journal:
    def __init__(self, store):
        self._store = store
        entries = self._read(True)
        self.newest = entries[-1][0] if entries else 0  # number of the newest entry
        self.newest_words = entries[-1][2:] if entries else None
        ack = store.number("jrn_ack")
        self.delivered = min(max(ack, 0), self.newest)
        if self.newest >= _LAST:
            use("renumber", "restart", self, store, entries)
        elif self.delivered != ack:
            # Stage 0 counts on from the ring: its next entry would pass for delivered.
            self._store.try_put("jrn_ack", self.delivered)

    # An entry that repeats the newest one is dropped until that one was delivered, because NVS
    # wears out. It is written all the same when the newest one is not newer than entry `since`,
    # at which a trial began.
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
        # A full NVS has room again when the oldest entry is erased.
        if put(place, entry) or put(place, None) and put(place, entry):
            self.newest = seq
            self.newest_words = entry[2:]

    # The entries after `seq`, oldest first; by default those not delivered yet.
    def entries_since(self, seq=None):
        if seq is None:
            seq = self.delivered
        return [entry for entry in self._read() if entry[0] > seq]

    # The orchestrator has stored all entries up to `seq`. A number that it cannot know is ignored.
    def acknowledge(self, seq):
        if self.delivered < seq <= self.newest:
            self.delivered = seq
            self._store.try_put("jrn_ack", seq)

    # The entries, oldest first, each number once, as the orchestrator requires it. Only damage
    # makes numbers beyond the last one: with `damaged` they count as the last one, else they are
    # skipped.
    def _read(self, damaged=False):
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
        entries.sort(key=lambda entry: entry[0])
        return entries
