"""What holds for every test: nothing is fetched, nothing is reported home, bars stay out of the
output.
"""

import os

import pytest

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
