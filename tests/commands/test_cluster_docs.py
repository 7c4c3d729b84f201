"""The YAML of docs/cluster.md: each is read as its service reads it, and its command is ours."""

import re
import shlex
from typing import Any

import pytest
import yaml

from pipeline.commands.table import parse_words
from pipeline.commands.work import SAME_DEVICE
from tests.support.house import HOUSE

TEXT = (HOUSE / "docs" / "cluster.md").read_text()
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", TEXT, re.M | re.S)]


def find_block(key: str) -> dict[str, Any]:
    [block] = [block for block in BLOCKS if key in block]
    return block


def list_commands() -> list[list[str]]:
    [container] = find_block("kind")["spec"]["template"]["spec"]["containers"]
    lines = find_block("run")["run"].splitlines()
    return [container["command"], *(shlex.split(line) for line in lines if " work " in line)]


@pytest.mark.parametrize("command", list_commands())
def test_each_task_joins_the_run_of_its_folder(command):
    program, name, *typed = command
    words = parse_words(name, typed)
    assert program.rpartition("/")[2] == "strop" and name == "work"
    assert words.places == ["runs/latest"] and words.knob("wait") == "600"
    assert words.knob("same_device") in SAME_DEVICE


def test_the_indexed_job_mounts_the_disk_that_it_works_on():
    spec = find_block("kind")["spec"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    [mount] = container["volumeMounts"]
    assert container["workingDir"].startswith(f"{mount['mountPath']}/")
    assert [volume["name"] for volume in pod["volumes"]] == [mount["name"]]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    # Kubernetes refuses `backoffLimitPerIndex` with any other.
    assert pod["restartPolicy"] == "Never"


def test_a_pool_sets_up_what_its_tasks_run():
    """SkyPilot refuses `run` in a pool, and `setup` or mounts in its tasks."""
    pool, task = find_block("pool"), find_block("run")
    assert "run" not in pool and not {"setup", "file_mounts", "workdir"} & task.keys()
    assert pool["resources"] == task["resources"]
    [folder] = re.findall(r"^cd (\S+)", task["run"])
    [mounted] = re.findall(r"mount -t nfs \S+ (\S+)", pool["setup"])
    assert folder.startswith(f"{mounted}/")
