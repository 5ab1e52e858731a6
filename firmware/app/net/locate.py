# Where the orchestrator is. Loaded for as long as it takes to find out.

from net import dns


# The address as getaddrinfo gives it; raises OSError. `nameserver()` is the network's. `anyone`:
# nobody told the beacon a name, so that whoever announces himself will do. `stubborn`: at last the
# port's own resolver is asked, which blocks.
async def find_orchestrator(host, port, nameserver, anyone, stubborn):
    try:
        try:
            return dns.socket_address(await dns.resolve(host, nameserver()), port)
        except dns.NoAddress:
            if not anyone:
                raise
        name, announced = await dns.discover()
        return dns.socket_address(await dns.resolve(name, nameserver()), announced)
    except OSError:
        if not stubborn:
            raise
        return dns.socket_address(host, port)
