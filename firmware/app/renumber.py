# The journal's numbers have come to their end, and begin again. Only damage brings that about.

from micropython import const

_PLACES = const(8)  # of the ring


# Stage 0 goes on from the highest number in the ring, so no place may keep an old one. What a power
# cut takes away here are entries of a ring that was damaged before.
def restart_numbers(journal, store, entries):
    for key in ["journal%d" % i for i in range(_PLACES)] + ["jrn_ack"]:
        if not store.try_put(key, None):
            return
    ack = journal.delivered
    journal.delivered = journal.newest = 0
    journal.newest_words = None
    for entry in entries:
        if entry[0] > ack or entry is entries[-1]:
            journal.append(tuple(entry[1:]))
