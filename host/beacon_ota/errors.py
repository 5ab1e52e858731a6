"""Named errors of the host package: each says who is at fault, and carries a stable code.

BeaconOtaError
├── InputError     wrong input: a file, a message, a field (exit 1)
├── UsageError     wrong use: an option, an order of calls (exit 2)
├── ReachError     out of reach: a server, a port, a beacon (exit 3)
└── DeniedError    not permitted: credentials, roles, locks (exit 4)

Exit 5 is no error: a rollout is stopped, and the orchestrator's database has not taken that yet.
"""


class BeaconOtaError(Exception):
    """A named failure.

    Args:
        code: stable word for scripts and metrics, e.g. ``image_magic``.
        message: one sentence for a person: what was found, what was expected, what to do.
        found: the offending value, when there is one.
        expected: what would have been accepted.
    """

    exit_code = 1

    def __init__(self, code: str, message: str, *, found: object = None, expected: object = None):
        super().__init__(message)
        self.code = code
        self.message = message
        self.found = found
        self.expected = expected

    def as_dict(self) -> dict[str, object]:
        """Return the fields that a problem document or ``--json`` carries."""
        fields: dict[str, object] = {"code": self.code, "detail": self.message}
        if self.found is not None:
            fields["found"] = self.found
        if self.expected is not None:
            fields["expected"] = self.expected
        return fields


class InputError(BeaconOtaError):
    """The input is not acceptable."""

    exit_code = 1


class UsageError(BeaconOtaError):
    """The caller asked for something that cannot be done this way."""

    exit_code = 2


class ReachError(BeaconOtaError):
    """A server, a port or a beacon could not be reached in time."""

    exit_code = 3


class DeniedError(BeaconOtaError):
    """The other side knows the caller, and refuses."""

    exit_code = 4
