"""The rig of campaigns: releases, one beacon with its network, orchestrators, invariants."""
