"""What this machine, its servers or the prompts lack for the Steps to come: known in a second, so refused first."""

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import urlsplit

from pipeline import served
from pipeline.artifacts import MODEL_FILE, Model, Prompts
from pipeline.config import (
    Checkpoint,
    Draw,
    DuelConfig,
    EndpointBackend,
    Evaluation,
    FunctionScorer,
    JsonScorer,
    Judge,
    LanguageScorer,
    Optimization,
    PairRound,
    ScoreConfig,
    ScriptedBackend,
    ServedModel,
    ServiceRuntime,
    TinyBase,
    TrackerConfig,
    TransformersBackend,
    VllmBackend,
    Wandb,
)
from pipeline.config.block import Workers
from pipeline.config.score import gpus_of
from pipeline.errors import Refusal, nearest
from pipeline.given import check_function, schema_of
from pipeline.language import check_languages
from pipeline.step import Part, Step


def check(coming: Iterable[Step]) -> None:
    """Of the Steps that are to be built alone: what is in the store needs no GPU and no server."""
    asked: list[object] = []
    for step in coming:
        check_keys(step)
        check_own(step)
        if not isinstance(step.config, Draw):
            continue
        check_context(step, step.config)
        backend, workers = step.config.backend, step.config.runtime.workers
        if (backend, workers) in asked:
            continue
        asked.append((backend, workers))
        match backend:
            case VllmBackend():
                check_gpus("sample.backend", backend.runtime.tensor_parallel, "sample", workers)
            case TransformersBackend():
                check_gpus("sample.backend", 1, "sample", workers)
            case ServedModel():
                served.key_of(f"exam.others.{str(step.label).split()[1]}", backend.runtime)  # `test NAME`
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


def check_own(step: Step) -> None:
    """What scorers and filters are given: languages that are known, a schema that is one, a function that is there."""
    match step.config:
        case ScoreConfig() as cfg:
            for name, scorer in cfg.scorers.items():
                check_scorer(f"the scorer {name}", scorer)
            for name, scorer in cfg.local.items():
                check_gpus(f"score.scorers.{name}.engine", gpus_of(scorer), "score", cfg.runtime.workers)
        case PairRound(filters=filters) if filters.languages:
            check_languages(filters.languages, "pair.filters.languages")


def check_scorer(name: str, scorer: object) -> None:
    match scorer:
        case LanguageScorer():
            check_languages(scorer.languages, f"{name}: languages")
        case JsonScorer(schema_file=str(path)):
            schema_of(path)
        case FunctionScorer(function=own):
            check_function(own, own.place, own.name, own.file is not None)


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
    context = known_context(step)
    if context and cfg.limits.completion >= context:
        raise Refusal(
            f"limits.completion={cfg.limits.completion}: the model has a context of {context} tokens, so no"
            f" prompt fits before such a completion.\n  Lower limits.completion, or give a model with a longer context."
        )


def line_of(draw: Step) -> Iterator[Step]:
    """Who is drawn from, what that was trained from, and so on: one tokenizer, one context."""
    model: Step | None = draw.inputs["policy"]
    while model:
        yield model
        model = model.inputs.get("init") or model.inputs.get("base")


def known_context(draw: Step) -> int | None:
    return min((context for model in line_of(draw) if (context := context_of(model))), default=None)


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


def check_gpus(engine: str, together: int, stage: str, workers: Workers) -> None:
    """`engine` and `stage` are the blocks whose `runtime` says so. For each engine those that it spans; without any GPU
    an engine that spans none may have others beside it."""
    wanted = together * (1 if workers == "auto" else workers)
    if wanted == 1 or (there := gpus_there()) >= wanted or (together == 1 and not there):
        return
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    of = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES={hidden})"
    if there < together:
        knob, most = f"{engine}.runtime.tensor_parallel={together}", there or 1
    else:
        knob, most = f"{stage}.runtime.workers={workers} of {together} GPUs each", there // together
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


def check_made(made: Step, folder_of: Callable[[Step], Path], coming: Iterable[Step]) -> None:
    """What only a Step's artifact can tell, asked before the next Step is started."""
    coming = list(coming)
    check_prompts(made, folder_of(made), coming)
    check_offline(made, folder_of(made), coming)
    check_lengths(made, folder_of, coming)


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
        if isinstance(cfg, Evaluation):
            check_slices(cfg, told(step.inputs["prompts"].part))
        if not isinstance(cfg, Draw):
            continue
        for _, source, part in step.edges():
            if source is made and part in rows and (short := cfg.short_of(rows[part])):
                raise Refusal(short)


def check_offline(made: Step, folder: Path, coming: Iterable[Step]) -> None:
    """Whether offline rows last for all rounds, before anything is drawn to stand beside them."""
    if made.stage != "offline":
        return
    rows = json.loads((folder / "funnel.json").read_text())["pairs"]
    for step in coming:
        if isinstance(step.config, PairRound) and (short := step.config.short_of(rows)):
            raise Refusal(short)


def check_lengths(made: Step, folder_of: Callable[[Step], Path], coming: Iterable[Step]) -> None:
    """Whether any prompt can fit, once the tokenizer of who will answer is there: before SFT is trained, where it is.

    Counted is a prompt's last turn alone, so that only what fits under no template is refused; where some prompts fit,
    the others are dropped and counted by `sample`.
    """
    if made.stage not in ("base", "sft") or not (count := counter(folder_of(made))):
        return
    seen: set[tuple[Path, int]] = set()
    for step in coming:
        cfg = step.config
        if not isinstance(cfg, Draw) or isinstance(cfg.backend, ScriptedBackend) or made not in line_of(step):
            continue
        asked: Part = step.inputs["prompts"]
        context = known_context(step)
        room = min(cfg.limits.prompt, context - cfg.limits.completion) if context else cfg.limits.prompt
        table = folder_of(asked.step) / asked.part
        if (table, room) not in seen and (table / "prompts.parquet").exists():
            check_room(cfg, context, room, Prompts(table), count)
        seen.add((table, room))


def check_room(cfg: Draw, context: int | None, room: int, prompts: Prompts, count: Callable[[str], int]) -> None:
    lengths = []
    for (messages,) in prompts.read().select("prompt").iter_rows():
        lengths.append(count(messages[-1]["content"].strip()))
        if lengths[-1] <= room:
            return
    beside = f", beside limits.completion={cfg.limits.completion} in a context of {context}" if context else ""
    raise Refusal(
        f"limits.prompt={cfg.limits.prompt}{beside}: {room} tokens are left for a prompt, and the shortest of"
        f" {len(lengths)} has {min(lengths)} in its last turn alone.\n"
        f"  Raise limits.prompt, lower limits.completion, or give shorter prompts."
    )


def counter(folder: Path) -> Callable[[str], int] | None:
    """Of a model's tokens in a text, template and special tokens apart; without torch, in milliseconds."""
    if not (folder / MODEL_FILE).exists() or not (file := Model(folder).tokenizer / "tokenizer.json").exists():
        return None
    from tokenizers import Tokenizer

    pieces = Tokenizer.from_file(str(file))
    pieces.no_truncation()
    pieces.no_padding()
    return lambda text: len(pieces.encode(text, add_special_tokens=False).ids)


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


def check_slices(cfg: Evaluation, told: set[str]) -> None:
    for column in cfg.slices:
        if column not in told:
            raise Refusal(f"evaluate.slices: no prompt has the column {column}. {nearest(column, [*told])}")
