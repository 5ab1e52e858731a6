"""Files a beacon boots from: ESP images, partition tables, NVS, LittleFS, releases, whole flash.

Everything here is a function of bytes; reading and writing files is the caller's affair.
"""

from mmap import mmap

Buffer = bytes | bytearray | memoryview | mmap
