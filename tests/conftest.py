"""What holds for every test: nothing is fetched, nothing is reported home, bars stay out of the
output, and what thousands of tests repeat is done once.
"""

import copy
import functools
import gc
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hydra._internal import defaults_list
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins

from pipeline import hardware

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    # Spinning threads are ten times slower on a machine that others use too.
    "OMP_WAIT_POLICY": "passive",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "WANDB_MODE": "offline",
}


def pytest_sessionstart() -> None:
    """Two fifths of composing are what Hydra does anew each time, to the same result."""
    load_files_once()
    skip_unused_maps()


def load_files_once() -> None:
    """A config is composed of some thirty files, and reading YAML is slow."""
    Plugins.instance()  # registers the kinds of sources
    kind: Any = SourcesRegistry.instance().resolve("file")
    load = kind.load_config

    @functools.cache
    def load_version(provider: str, folder: str, config_path: str, *_: int) -> Any:
        return load(kind(provider, folder), config_path)

    def load_config(source: Any, config_path: str) -> Any:
        file = Path(source.path, source._normalize_file_name(config_path)).stat()
        version = file.st_ino, file.st_mtime_ns, file.st_size
        return copy.deepcopy(load_version(source.provider, source.path, config_path, *version))

    kind.load_config = load_config


def skip_unused_maps() -> None:
    """Hydra maps all choices so far at each file, though only `${…}` in its defaults reads them."""
    make = defaults_list._create_interpolation_map

    def make_where_read(overrides: Any, defaults: list[Any], self_added: bool) -> Any:
        is_read = any(not each.is_self() and each.is_interpolation() for each in defaults)
        return make(overrides, defaults, self_added) if is_read else None

    defaults_list._create_interpolation_map = make_where_read


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """What collecting the tests makes stays: to look for garbage is a quarter of its time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(scope="module", autouse=True)
def lasting_objects_are_not_collected() -> None:
    """Those of libraries that earlier modules loaded: a trainer starts with a collection, which
    takes as long as a small training where torch and TRL are loaded.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def card(tmp_path, monkeypatch):
    """Puts a driver's tool there, which tells of these GPUs: their GiB, how many of those are
    free, what they can.
    """

    def put(
        *gibibytes: float,
        name: str = "NVIDIA H100 80GB HBM3",
        visible: str | None = None,
        free: float | None = None,
        capability: str = "9.0",
    ) -> None:
        hardware._check_bfloat16.cache_clear()
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.parent.mkdir(exist_ok=True)
        sizes = [
            [int(1024 * size) for size in (each, each if free is None else free)]
            for each in gibibytes
        ]
        rows = [f"{name}, {total}, {left}, {capability}" for total, left in sizes]
        tool.write_text("#!/bin/sh\n" + "".join(f"echo '{row}'\n" for row in rows))
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    yield put
    hardware._check_bfloat16.cache_clear()
