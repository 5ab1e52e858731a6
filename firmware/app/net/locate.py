# Finds the orchestrator's address: by name, by mDNS, or by the port's own resolver.

from net import dns


# The address in the form of getaddrinfo; raises OSError. `nameserver()` returns the network's name
# server. `anyone`: the beacon was given no name, so any orchestrator that announces itself will do.
# `stubborn`: the port's own resolver, which blocks, is asked at the end.
async def find(host, port, nameserver, anyone, stubborn):
    try:
        try:
            return dns.address(await dns.resolve(host, nameserver()), port)
        except dns.NoAddress:
            if not anyone:
                raise
        name, announced = await dns.discover()
        return dns.address(await dns.resolve(name, nameserver()), announced)
    except OSError:
        if not stubborn:
            raise
        return dns.address(host, port)
