# The exception of a release that is not installed: a code of stage "verify", and a detail. It has a
# module of its own, so that handling it does not keep the modules of verification in memory.


class Refused(Exception):
    def __init__(self, code, detail):
        self.code = code
        self.detail = detail
