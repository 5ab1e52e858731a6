"""A PostgreSQL of the tests' own, one of each process of the run."""

from functools import cache

import pytest

from beacon_ota.campaign.rig.postgres import PostgresCluster, find_programs


@cache
def cluster() -> PostgresCluster:
    """Return the cluster of this process, or skip the test that asks where there is none."""
    found = find_programs()
    if found is None:
        pytest.skip("no PostgreSQL here (Debian: apt-get install postgresql)")
    return PostgresCluster(found)
