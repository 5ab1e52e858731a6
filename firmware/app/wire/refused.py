# Why a release is not installed: a code of the stage "verify", and a few words. On its own, so that
# who handles a refusal does not keep the modules in memory that judged.


class Refused(Exception):
    def __init__(self, code, detail):
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
