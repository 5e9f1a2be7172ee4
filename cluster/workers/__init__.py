"""The one place that talks to Ray about workers: actors around the roles, and typed handles for the loops.

In: settings and references. Out: references and small statistics; a payload passes through the driver only as a
reference, given as a top-level argument, which is where Ray resolves it. Left out: what the roles do (roles/).
"""

from cluster.workers.broker import NodeRequests
from cluster.workers.calls import get, put
from cluster.workers.learner import LearnerGroup
from cluster.workers.lease import LEASE, end_living
from cluster.workers.nodes import NodeAnswer, free_resources, on_every_node
from cluster.workers.rollout import living_rollout, start_rollout
from cluster.workers.scorer import ScorerPool

__all__ = [
    "LEASE",
    "LearnerGroup",
    "NodeAnswer",
    "NodeRequests",
    "ScorerPool",
    "end_living",
    "free_resources",
    "get",
    "living_rollout",
    "on_every_node",
    "put",
    "start_rollout",
]
