import pytest

from tests.trust.lab import Device, Key


@pytest.fixture(scope="session")
def keys() -> list[Key]:
    """Four signing keys; which of them are trusted, each test decides."""
    return [Key(f"key-{i}") for i in range(4)]


@pytest.fixture(scope="session")
def device(tmp_path_factory):
    """The beacon's own verification code, in its interpreter."""
    with Device(tmp_path_factory.mktemp("device")) as device:
        yield device
