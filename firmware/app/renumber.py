# Restarts the journal's numbers when they have reached their end, which only damage can cause.

from micropython import const

_PLACES = const(8)  # of the ring


# Stage 0 counts on from the highest number in the ring, so every old entry is erased first. A power
# cut here can only lose entries of a ring that was damaged before.
def restart(journal, store, entries):
    for key in ["journal%d" % i for i in range(_PLACES)] + ["jrn_ack"]:
        if not store.try_put(key, None):
            return
    ack = journal.delivered
    journal.delivered = journal.newest = 0
    journal.newest_words = None
    for entry in entries:
        if entry[0] > ack or entry is entries[-1]:
            journal.append(tuple(entry[1:]))
