"""Two hosts behind real kernel NATs on one machine, in network namespaces that leave no trace.

Nothing here knows of nat-traverse's protocol: any program can be run in the lab.
"""

from nat_traverse.lab.namespace import LabError
from nat_traverse.lab.plan import Addresses
from nat_traverse.lab.ruleset import Kind
from nat_traverse.lab.topology import (
    Counters,
    Host,
    Lab,
    Node,
    SharedLab,
    Traffic,
    available,
)

__all__ = [
    "Addresses",
    "Counters",
    "Host",
    "Kind",
    "Lab",
    "LabError",
    "Node",
    "SharedLab",
    "Traffic",
    "available",
]
