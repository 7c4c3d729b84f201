"""Steps as tasks of a Ray cluster that runs. Ray finds the nodes, and starts again what is lost.

Plain `ray` is enough: neither ray[data], whose blocks our shards do not need, nor ray[default].
"""

import os
import secrets
import signal
import socket
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pipeline
from pipeline.config import RayCluster
from pipeline.driver.child_process import GRACE
from pipeline.driver.cluster.launcher import ClusterTask
from pipeline.driver.cluster.needs import Needs
from pipeline.driver.cluster.node import RESTARTS
from pipeline.errors import UserError, pluralize
from pipeline.hashing import hash_code

PAUSE = 0.2  # seconds between two questions to Ray
PROBE = 10.0  # seconds for its head to take a connection
PATIENCE = 60.0  # seconds for a node's answer
GIB = 1 << 30
# Variables of the driver that mean something else on another node.
NOT_PASSED = "RAY_", "SLURM_", "CUDA_VISIBLE_DEVICES"
ROOT = str(Path(pipeline.__file__).resolve().parents[1])


def connect(cfg: RayCluster) -> "Ray":
    if find_spec("ray") is None:
        raise UserError(
            "cluster=ray: the package ray is not installed.\n"
            "  Type `pip install 'strop[ray]'`, or give cluster=local."
        )
    _check_answers(cfg.address)
    import ray

    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        if not ray.is_initialized():
            ray.init(cfg.address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, ImportError) as error:
        raise UserError(_explain_refusal(cfg.address, error)) from error
    finally:
        for number, handler in handlers.items():  # Ray has replaced that of SIGTERM
            signal.signal(number, handler)
    return Ray(cfg)


def _check_answers(address: str) -> None:
    """Ray itself asks for minutes where nothing listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # such as `auto`
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE).close()
    except OSError as error:
        raise UserError(_explain_refusal(address, error)) from error


def _explain_refusal(address: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    if "ersion mismatch" in reason:
        here = f"Python {sys.version.split()[0]}"
        return (
            f"cluster.address={address}: its Ray or Python is another one than here ({here}).\n"
            f"  {reason}\n"
            "  Install the same versions on all machines."
        )
    return (
        f"cluster.address={address}: no Ray cluster answers there ({reason}).\n"
        "  Type `ray start --head` on the first machine and `ray start --address=HOST:6379` on the"
        " others, or give cluster=local."
    )


class Ray:
    def __init__(self, cfg: RayCluster):
        import ray

        self._cfg, self._ray = cfg, ray
        # Defined here, so that it is sent by value: it finds our package before it imports it.
        self._call = ray.remote(_define_call())
        self._started: list[RayTask] = []
        self._free, self._looked_at = "", 0.0

    @property
    def has_gpus(self) -> bool:
        return any(node["Resources"].get("GPU") for node in self._list_nodes())

    def _list_nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def describe(self) -> str:
        nodes = self._list_nodes()
        total = {
            name: sum(int(node["Resources"].get(name, 0)) for node in nodes)
            for name in ("CPU", "GPU")
        }
        counts = f"{pluralize(total['CPU'], 'core')}, {pluralize(total['GPU'], 'GPU')}"
        return f"Ray: {pluralize(len(nodes), 'node')} with {counts}"

    def explain_misfit(self, needs: Needs, machines: int) -> str | None:
        wanted = _list_resources(needs)
        fitting = sum(
            all(node["Resources"].get(name, 0) >= count for name, count in wanted.items())
            for node in self._list_nodes()
        )
        if fitting >= machines:
            return None
        if not fitting:
            return "no node of Ray has that"
        return f"{pluralize(fitting, 'node')} of Ray can be one of them"

    def check_nodes(self, folders: list[Path], files: list[Path]) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = self._list_nodes()
        probes = [folder / f".seen-{secrets.token_hex(4)}" for folder in folders]
        paths = [*map(str, [*probes, *files]), str(Path.cwd())]
        try:
            for probe in probes:
                probe.touch()
            answers = [
                self._call.options(
                    num_cpus=0,
                    max_retries=0,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                ).remote(ROOT, "look", paths)
                for node in nodes
            ]
            for node, answer in zip(nodes, answers, strict=True):
                self._check_answer(node["NodeManagerHostname"], answer)
        finally:
            for probe in probes:
                probe.unlink(missing_ok=True)

    def _check_answer(self, host: str, answer: Any) -> None:
        lost = self._ray.exceptions.TaskUnschedulableError, self._ray.exceptions.NodeDiedError
        try:
            seen = self._ray.get(answer, timeout=PATIENCE)
        except lost:  # Ray lists a node for some seconds after its end
            return
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"cluster=ray: node {host} cannot run Strop ({reason}).\n"
                "  Install the same version in the Python of its `ray start`."
            ) from error
        if seen["unseen"]:
            unseen = Path(seen["unseen"][0])
            folder = unseen.parent if unseen.name.startswith(".seen-") else unseen
            raise UserError(
                f"cluster=ray: node {host} does not see {folder}.\n"
                "  Give folders on a disk that all nodes see, at the same path:"
                " store=FOLDER runs=FOLDER, and start the run in one."
            )
        if seen["code"] != hash_code():
            raise UserError(
                f"cluster=ray: node {host} has another version of this software ({seen['code']};"
                f" here {hash_code()}).\n"
                "  Install the same version on all machines."
            )

    # ── tasks ─────────────────────────────────────────────────────────────────────────────────────

    def start(self, task: ClusterTask) -> "RayTask":
        if task.machines > 1:
            started = self._start_together(task)
        elif task.count is None:
            started = RayTask(
                self, [self._submit(task, "run_step", task.words, task.log)], task.log
            )
        else:
            logs = _number_logs(task.log, task.count)
            answers = [self._submit(task, "run_helper", task.words, log, "SPREAD") for log in logs]
            started = RayTask(self, answers, task.log)
        self._started.append(started)
        return started

    def _start_together(self, task: ClusterTask) -> "RayTask":
        """On as many nodes, all reserved before any starts."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundles = [_list_resources(task.needs)] * task.machines
        group = placement_group(bundles, strategy="STRICT_SPREAD")
        places = [PlacementGroupSchedulingStrategy(group, at) for at in range(task.machines)]
        own = self._submit(task, "run_step", task.words, task.log, places[0])
        logs = _number_logs(task.log.with_name(f"{task.name}-partner.log"), task.machines - 1)
        for log, place in zip(logs, places[1:], strict=True):
            self._submit(task, "run_helper", [*task.partner_words], log, place)
        return RayTask(self, [own], task.log, group)

    def _submit(
        self, task: ClusterTask, name: str, words: list[str], log: Path, strategy: Any = "DEFAULT"
    ) -> Any:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(NOT_PASSED)
        }
        above = {name: str(value) for name, value in self._cfg.env.items()}
        call = self._call.options(
            name=task.name,
            num_cpus=task.needs.cpus,
            num_gpus=task.needs.gpus,
            memory=_list_resources(task.needs).get("memory"),
            max_retries=RESTARTS,
            scheduling_strategy=strategy,
        )
        return call.remote(ROOT, name, words, str(log), str(Path.cwd()), environment, above)

    def describe_free(self) -> str:
        if time.monotonic() - self._looked_at > PATIENCE / 10:
            self._looked_at, free = time.monotonic(), self._ray.available_resources()
            counts = [pluralize(int(free.get("GPU", 0)), "GPU")] if self.has_gpus else []
            counts.append(pluralize(int(free.get("CPU", 0)), "core"))
            self._free = f"Ray has {', '.join(counts)} free, on all nodes together"
        return self._free

    def wait_for_stopped(self) -> None:
        left = [answer for task in self._started for answer in task.answers if task.is_stopped]
        if left:
            _, left = self._ray.wait(left, num_returns=len(left), timeout=2 * GRACE)
        for answer in left:
            self._ray.cancel(answer, force=True)
        for task in self._started:
            task.free_nodes()
        self._started = []


def _define_call() -> Any:
    def call(root: str, name: str, *arguments: Any) -> Any:
        from importlib import import_module

        if root not in sys.path:
            sys.path.insert(0, root)
        return getattr(import_module("pipeline.driver.cluster.ray_node"), name)(*arguments)

    return call


def _list_resources(needs: Needs) -> dict[str, int]:
    wanted = {"CPU": needs.cpus, "GPU": needs.gpus, "memory": int((needs.memory or 0) * GIB)}
    return {name: count for name, count in wanted.items() if count}


def _number_logs(log: Path, count: int) -> list[Path]:
    return [log.with_suffix(f".{number}.log") for number in range(1, count + 1)]


class RayTask:
    """One task, or several that help a step. `group`: the nodes that are reserved for it."""

    def __init__(self, cluster: Ray, answers: list[Any], log: Path, group: Any = None):
        self._cluster, self.answers, self._log, self._group = cluster, answers, log, group
        self._code: int | None = None
        self._looked_at = 0.0
        self.is_stopped = False

    def poll(self) -> int | None:
        if self._code is None and time.monotonic() - self._looked_at > PAUSE:
            self._looked_at = time.monotonic()
            self._code = self._ask()
            if self._code is not None:
                self.free_nodes()
        return self._code

    def _ask(self) -> int | None:
        import ray

        [answer] = self.answers
        if not ray.wait([answer], timeout=0)[0]:
            return None
        try:
            code: int = ray.get(answer)
        except ray.exceptions.RayError as error:
            with self._log.open("a") as log:
                log.write(f"{str(error).strip()}\n")
            return -signal.SIGKILL
        return code

    def free_nodes(self) -> None:
        """What runs with it on other nodes ends."""
        from ray.util.placement_group import remove_placement_group

        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    def explain_wait(self) -> str | None:
        return None if self._log.stat().st_size else self._cluster.describe_free()

    def stop(self) -> None:
        import ray

        if not self.is_stopped:
            self.is_stopped = True
            for answer in self.answers:
                ray.cancel(answer)
