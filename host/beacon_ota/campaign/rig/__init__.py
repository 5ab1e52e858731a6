"""What campaigns run on: releases, one beacon's network, orchestrators, invariants."""
