# Opens the connections of a download. Loaded for that only: while the bytes come, the heap has to
# hold a report of progress as well.

import time

from net.api import is_clock_skew
from net.http import HttpError


# Requests the release's file from byte `first` up to `stop`. Returns the connection with an
# authenticated answer: 206 with this range, or 200 with the whole file. The mac identifies the
# file, not the ETag, which proxies weaken when they compress or change an answer.
async def open(download, first, stop):
    api = download.beacon.api
    digest = download.digest
    size = download.size
    headers = ()
    if first or stop < size:
        bounds = "bytes=%d-%s" % (first, stop - 1 if stop < size else "")
        headers = (("Range", bounds), ("If-Range", '"%s"' % digest))
    for again in (True, False):
        connection = await api.open_request(
            "GET",
            download.attempt.download_url,
            b"",
            headers,
            1000 * download.beacon.store.policy("stall_s"),
            time.ticks_add(time.ticks_ms(), download.ms_left()),
        )
        if connection.status in (200, 206):
            try:
                api.check_mac(connection, digest)
                if connection.status == 206:
                    found = connection.headers.get("content-range")
                    if found != "bytes %d-%d/%d" % (first, stop - 1, size):
                        raise HttpError("http", "range %s" % found, False, 206)
                    size = stop - first
                length = connection.length()
                if length is not None and length != size:
                    code = "truncated" if length < size else "http"
                    raise HttpError(code, "length %d, not %d" % (length, size))
                connection.drop_header_buffer()
                return connection
            except BaseException:
                connection.close()
                raise
        status, answer, retry = await api.read_answer(connection)
        # The orchestrator was restarted meanwhile; as in Api.call().
        if not (again and status == 401 and is_clock_skew(answer)):
            break
    raise HttpError("http", "status %d" % status, False, status, retry)
