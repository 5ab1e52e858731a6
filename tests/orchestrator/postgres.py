"""A PostgreSQL of the tests' own, one of each process of the run."""

from functools import cache

import pytest

from beacon_ota.campaign.rig.postgres import Cluster, programs


@cache
def cluster() -> Cluster:
    """Return the cluster of this process, or skip the test that asks where there is none."""
    found = programs()
    if found is None:
        pytest.skip("no PostgreSQL here (Debian: apt-get install postgresql)")
    return Cluster(found)
