# The beacon's own cryptography: pure Python over what the stock core has (hashlib's sha256,
# cryptolib's AES in ECB and CBC, big integers). Each file stands alone and is imported when it
# is needed; loaded bytecode lives in RAM. The host does not import these: it uses a library,
# and the two check each other in the tests.


# Two buffers of one length: big integers do in C what would be a loop over bytes in bytecode.
def xor(a, b):
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).to_bytes(len(a), "big")
