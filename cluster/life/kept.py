"""Where a cluster that outlives its drivers is: what the keeper tells them, through a pipe whose number they inherit.

Data only, without Ray: the supervisor must start fast. Left out: who writes it (keeper.py), who reads it
(connection.py).
"""

from __future__ import annotations

from dataclasses import dataclass

KEPT = "RAYLIGN_KEPT"
"""In the environment of a driver: the number of a pipe that tells where its cluster is, once it stands."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A cluster that outlives the driver. namespace: what those of the run's workers begin with. authentication: Ray's
    mode of it, as whoever started or found the cluster has it; None where Ray was not told. scratch: a folder of the
    keeper's machine for the workers' temporary files, which goes with it."""

    address: str
    namespace: str
    authentication: str | None
    scratch: str
