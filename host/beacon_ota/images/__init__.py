"""Files a beacon boots from: ESP images, partition tables, NVS, LittleFS, releases, whole flash.

Everything here is a function of bytes; the caller reads and writes the files.
"""

from mmap import mmap

Buffer = bytes | bytearray | memoryview | mmap
