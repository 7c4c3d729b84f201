"""What this machine, its servers or the prompts lack for the Steps to come: known in a second, so refused first."""

import json
import os
import subprocess
from collections.abc import Iterable
from functools import cache, partial
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import urlsplit

from pipeline import served
from pipeline.artifacts import Prompts
from pipeline.config import (
    Checkpoint,
    Draw,
    DuelConfig,
    EndpointBackend,
    Judge,
    Optimization,
    ScoreConfig,
    ServiceRuntime,
    TinyBase,
    TrackerConfig,
    TransformersBackend,
    VllmBackend,
    Wandb,
)
from pipeline.config.block import Workers
from pipeline.errors import Refusal
from pipeline.step import Step


def check(coming: Iterable[Step]) -> None:
    """Of the Steps that are to be built alone: what is in the store needs no GPU and no server."""
    asked: list[object] = []
    for step in coming:
        check_keys(step)
        if not isinstance(step.config, Draw):
            continue
        check_context(step, step.config)
        backend, workers = step.config.backend, step.config.runtime.workers
        if (backend, workers) in asked:
            continue
        asked.append((backend, workers))
        match backend:
            case VllmBackend():
                check_gpus(backend.runtime.tensor_parallel, workers)
            case TransformersBackend():
                check_gpus(1, workers)
            case EndpointBackend():
                served.card_of("sample.backend", backend.runtime, backend.model)


def check_keys(step: Step) -> None:
    """A judge may be asked after hours; whether its key is there is known now."""
    judges: dict[str, Judge] = {}
    match step.config:
        case ScoreConfig():
            judges = {f"the scorer {name}": one for name, one in step.config.scorers.items() if isinstance(one, Judge)}
        case Optimization():
            check_tracker(step.config.runtime.tracker)
        case DuelConfig():
            judges = {f"the duel {step.label}": step.config}
    for name, judge in judges.items():
        if isinstance(judge.engine.runtime, ServiceRuntime):
            served.key_of(f"{name}: engine", judge.engine.runtime)


def check_tracker(tracker: TrackerConfig | None) -> None:
    """It is opened when a training starts, which may be after hours; what it needs is known now."""
    if tracker and not find_spec(tracker.kind):
        raise Refusal(
            f"tracker={tracker.kind}: the package {tracker.kind} is not installed.\n"
            f"  Type `make install`, whose lock holds it, or give tracker=none."
        )
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    if isinstance(tracker, Wandb) and tracker.mode == "online" and not _key_for(host):
        raise Refusal(
            f"tracker=wandb: there is no key for {host}: WANDB_API_KEY is not set, and the netrc file does not name "
            f"it.\n  Type `export WANDB_API_KEY=…` or `wandb login`; or give tracker.mode=offline, which needs no key."
        )


def _key_for(host: str) -> bool:
    """As W&B looks for it: the environment, then what `wandb login` has stored."""
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        stored = netrc(file).authenticators(host) if file.is_file() else None
    except (NetrcParseError, OSError):
        stored = None  # W&B reads no key there either
    return any(os.environ.get(name, "").strip() for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")) or bool(
        stored
    )


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


def check_gpus(together: int, workers: Workers) -> None:
    """For each engine those that it spans; without any GPU an engine that spans none may have others beside it."""
    wanted = together * (1 if workers == "auto" else workers)
    if wanted == 1 or (there := gpus_there()) >= wanted or (together == 1 and not there):
        return
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    of = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES={hidden})"
    if there < together:
        knob, most = f"sample.backend.runtime.tensor_parallel={together}", there or 1
    else:
        knob, most = f"sample.runtime.workers={workers} of {together} GPUs each", there // together
    raise Refusal(
        f"{knob}: this machine shows {there} GPUs{of}.\n"
        f"  Give {f'a number up to {most}' if most > 1 else '1'}, or run where there are {wanted}."
    )


def gpus_there() -> int:
    """Asked of the driver's own tool: loading CUDA here would take memory from the workers."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    there = sum(line.startswith("GPU ") for line in listed.splitlines())
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return there if named is None else min(there, len([name for name in named.split(",") if name.strip()]))


def check_prompts(made: Step, folder: Path, coming: Iterable[Step]) -> None:
    """Whether these prompts last for all rounds and tell what is asked of them, before anything is trained on them."""
    funnel = folder / "funnel.json"
    if made.stage != "prompts" or not funnel.exists():
        return
    rows = json.loads(funnel.read_text())["out"]
    told = cache(partial(told_in, folder))
    for step in coming:
        cfg = step.config
        if isinstance(cfg, ScoreConfig):
            for _, source, part in step.edges():
                if source is made and part:
                    check_columns(cfg, told(part))
        if not isinstance(cfg, Draw):
            continue
        for _, source, part in step.edges():
            if source is made and part in rows and (short := cfg.short_of(rows[part])):
                raise Refusal(short)


def told_in(folder: Path, part: str) -> set[str]:
    """The columns that some prompt of a part has beside its text."""
    return {name for columns in Prompts(folder / part).columns().values() for name in columns}


def check_columns(cfg: ScoreConfig, told: set[str]) -> None:
    for name, scorer in cfg.scorers.items():
        missing = [column for column in getattr(scorer, "reads", ()) if column not in told]
        if missing:
            raise Refusal(
                f"the scorer {name} ({scorer.kind}) reads the prompts' column {missing[0]}, and no prompt has it"
                f" (they have {', '.join(sorted(told)) or 'none beside their text'}).\n"
                "  Give prompts with that column, or choose who marks: score=own +scorer@score.scorers.NAME=FILE"
                " +scorer@exam.score.scorers.NAME=FILE pair.scorer=NAME, FILE one of conf/scorer/."
            )
