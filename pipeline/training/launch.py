"""How a training is started: in one process on one visible device. Called before torch is loaded."""

import os


def expose_one_device() -> None:
    """Several visible GPUs in one process become a DataParallel that TRL refuses: the first one is taken."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or "," in visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = (visible or "0").split(",")[0]
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # the locks pin it, and tests hold what is used of it
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # TRL reports every training to its makers
