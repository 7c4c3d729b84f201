"""What this machine, its servers or the prompts lack for the Steps to come: known in a second, so refused first."""

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from pipeline import served
from pipeline.config import Checkpoint, Draw, EndpointBackend, TinyBase, VllmBackend
from pipeline.errors import Refusal
from pipeline.step import Step


def check(coming: Iterable[Step]) -> None:
    """Of the Steps that are to be built alone: what is in the store needs no GPU and no server."""
    asked: list[object] = []
    for step in coming:
        if not isinstance(step.config, Draw):
            continue
        check_context(step, step.config)
        if (backend := step.config.backend) in asked:
            continue
        asked.append(backend)
        match backend:
            case VllmBackend() if backend.runtime.tensor_parallel > 1:
                check_gpus(backend.runtime.tensor_parallel)
            case EndpointBackend():
                served.card_of("sample.backend", backend.runtime, backend.model)


def check_context(step: Step, cfg: Draw) -> None:
    """Where completions alone fill the context no prompt fits, however short."""
    contexts = [context for ancestor in step.ancestors() if (context := context_of(ancestor))]
    if contexts and cfg.limits.completion >= min(contexts):
        raise Refusal(
            f"limits.completion={cfg.limits.completion}: the model has a context of {min(contexts)} tokens, so no"
            f" prompt fits before such a completion.\n  Lower limits.completion, or give a model with a longer context."
        )


def context_of(step: Step) -> int | None:
    """What is known of it before anything is opened: of a model to be made, and of a local checkpoint."""
    match step.config:
        case TinyBase():
            return step.config.context
        case Checkpoint():
            config = Path(step.config.model).expanduser() / "config.json"
            known = json.loads(config.read_text()) if step.config.model.local and config.is_file() else {}
            return known.get("max_position_embeddings")
        case _:
            return None


def check_gpus(wanted: int) -> None:
    if (there := visible_gpus()) < wanted:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        of = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES={hidden})"
        raise Refusal(
            f"sample.backend.runtime.tensor_parallel={wanted}: this machine shows {there} GPUs{of}.\n"
            f"  Give {f'a number up to {there}' if there else '1'}, or run where there are {wanted}."
        )


def visible_gpus() -> int:
    """Asked of the driver's own tool: loading CUDA here would take memory from the workers."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    there = sum(line.startswith("GPU ") for line in listed.splitlines())
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return there if named is None else min(there, len([name for name in named.split(",") if name.strip()]))


def check_prompts(made: Step, folder: Path, coming: Iterable[Step]) -> None:
    """Whether these prompts last for all rounds, as soon as they are counted and before anything is trained."""
    funnel = folder / "funnel.json"
    if made.stage != "prompts" or not funnel.exists():
        return
    rows = json.loads(funnel.read_text())["out"]
    for step in coming:
        cfg = step.config
        if not isinstance(cfg, Draw):
            continue
        for _, source, part in step.edges():
            if source is made and part in rows and (short := cfg.short_of(rows[part])):
                raise Refusal(short)
