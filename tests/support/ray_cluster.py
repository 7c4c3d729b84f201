"""A real Ray cluster of two logical nodes on this machine, where the package ray is installed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

CORES = 4  # of each node: with fewer it starves
# Seconds that a busy machine of two cores may need before a node answers.
PATIENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_gcs_server_request_timeout_seconds": "120",
    "RAY_worker_register_timeout_seconds": "300",
}


def explain_absence() -> str | None:
    return None if find_spec("ray") else "ray is missing: pip install 'strop[ray]'"


class Nodes:
    """A head, and a node that may be lost."""

    def __init__(self, cluster: Any, node: dict[str, Any]):
        self._cluster, self._node = cluster, node
        self._second = cluster.add_node(**node)
        self.address: str = cluster.address

    def lose(self) -> None:
        """Kill all processes of the second node, and start another in its place."""
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = self._cluster.add_node(**self._node)


@contextmanager
def run_ray() -> Iterator[Nodes]:
    os.environ |= PATIENT
    from ray.cluster_utils import Cluster

    node = {"num_cpus": CORES, "num_gpus": 0, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        yield Nodes(cluster, node)
    finally:
        cluster.shutdown()
