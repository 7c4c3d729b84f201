"""A real Ray cluster of two logical nodes on this machine, where the package ray is installed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

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


@contextmanager
def run_ray() -> Iterator[str]:
    """Its address."""
    os.environ |= PATIENT
    from ray.cluster_utils import Cluster

    node = {"num_cpus": CORES, "num_gpus": 0, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        yield cluster.address
    finally:
        cluster.shutdown()
