"""What stages pass to each other: typed folders, readable without this project.

Every table is parquet, every model opens with `from_pretrained`. Writers use `write_table` or
`write_text`: temporary file, sync, rename, so that a reader never sees half a file.
"""

import json
import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from pipeline import progress
from pipeline.errors import UserError
from pipeline.hashing import hash_content

if TYPE_CHECKING:
    import polars as pl


# 40 bits separate the samples of a prompt, the other 24 the few policies that share a request.
DRAW_DIGITS = 10


def draw_key(sample_id: str) -> str:
    """The part of a sample's id that the policy does not change. Order and chance depend on it."""
    return sample_id[:DRAW_DIGITS]


def write_atomically(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names no file
        raise
    scratch.rename(path)


def make_new_folder(wanted: Path) -> Path:
    """Make a folder of this name, or of the next that is free: NAME-2, NAME-3 …"""
    for attempt in range(1000):
        path = wanted if attempt == 0 else wanted.with_name(f"{wanted.name}-{attempt + 1}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
    raise AssertionError(f"a thousand folders named {wanted}")


def read_folder(word: str) -> Path:
    """A folder as typed. A shell leaves `out=~/x` as it is."""
    try:
        return Path(word).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{word}: this home directory is not known. Give a folder, as ./{word}."
        ) from error


def write_text(path: Path, text: str) -> None:
    write_atomically(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_table(path: Path, table: "pl.DataFrame") -> None:
    """Write parquet atomically; the same rows give the same bytes."""
    import io

    buffer = io.BytesIO()
    with progress.measure_phase(progress.WRITE):
        table.write_parquet(buffer, compression="zstd", statistics=False)
        write_atomically(path, buffer.getvalue())


def read_table(path: Path) -> "pl.DataFrame":
    import polars as pl

    try:
        return pl.read_parquet(path, glob=False)
    except FileNotFoundError as error:
        raise UserError(_describe_absence(path)) from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UserError(_describe_damage(path, "parquet", error)) from error


def scan_tables(files: Iterable[Path]) -> "pl.LazyFrame":
    """Read lazily. `glob=False`: a folder's name may have `[` or `*` in it."""
    import polars as pl

    return pl.scan_parquet([*files], glob=False)


def _read_shards(folder: Path) -> Iterator["pl.DataFrame"]:
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise UserError(_describe_absence(folder / "*.parquet"))
    yield from map(read_table, files)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(_describe_damage(path, "JSON", error)) from error


def read_object(path: Path, **kinds: type) -> dict[str, Any]:
    """A published JSON object, checked for the keys that its readers need and their types."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(_describe_damage(path, "a JSON object", ValueError("it is another value")))
    for name, kind in kinds.items():
        if not isinstance(value.get(name), kind):
            cause = ValueError(f"it has no {name}")
            raise UserError(_describe_damage(path, "a JSON object", cause))
    return value


def _describe_absence(path: Path) -> str:
    return (
        f"{path}: missing: its step was pruned, or the store was moved or is not complete.\n"
        "  Type the command of its run again (the first line of its config.yaml) to rebuild what is"
        " missing."
    )


def _describe_damage(path: Path, form: str, error: BaseException) -> str:
    cause = str(error).splitlines()[0][:200] if str(error) else "damaged"
    fault = f"{path}: cannot be read as {form} ({cause})."
    if any(part.endswith(".partial") for part in path.parts):
        return f"{fault}\n  Remove this file and run the same command again: it is rebuilt."
    return (
        f"{fault}\n  Its bytes have changed since it was written. Type the command of its run again"
        " (see its config.yaml)\n  with verify=true: damaged steps are found and rebuilt."
    )


def find_store(step: Path) -> Path:
    """The store of a step's folder, which is STORE/STAGE/FINGERPRINT."""
    return step.parent.parent


def find_step(root: Path, name: str, others: Iterable[Path] | None = None) -> Path:
    """The folder of a step `stage/fingerprint`: in its store, or in one that is only read there.

    `others` are those; None: all that runs of this store have read. Of a pruned step another store
    may have the files; they count only if they are the same.
    """
    own = root / name
    if (own / STEP_FILE).exists():
        return own
    there = find_in_stores(read_other_stores(root) if others is None else others, name)
    is_same = there and _read_content(own) in (None, _read_content(there))
    return there if there and is_same else own


def find_in_stores(roots: Iterable[Path], name: str) -> Path | None:
    """The first store's folder of a step with its files: pruning leaves the manifest alone."""
    folders = (root / name for root in roots)
    return next((folder for folder in folders if (folder / STEP_FILE).exists()), None)


def read_other_stores(root: Path) -> list[Path]:
    """The stores that runs of this one have read, those of the last run first."""
    try:
        return [Path(other) for other in read_json(root / STORE_MARKER).get("others", [])]
    except (OSError, UserError, AttributeError, TypeError):
        return []


def _read_content(step: Path) -> str | None:
    try:
        return hash_content(read_json(step / MANIFEST_FILE))
    except (OSError, UserError, KeyError, TypeError):
        return None


def resolve_run(run: Path) -> Path:
    """The folder that `runs/latest` points to now, relative where that is possible."""
    folder, here = run.resolve(), Path.cwd()
    is_inside = folder.is_relative_to(here) and not run.is_absolute()
    return folder.relative_to(here) if is_inside else folder


def list_steps(run: Path, pattern: str) -> list[Path]:
    """A run's links to its steps. Refuses one into a store that is not there any more."""
    links = sorted((run / "store").glob(pattern))
    for link in (link for link in links if link.is_symlink()):
        root = find_store(link.parent / link.readlink())
        if not root.exists():
            raise UserError(
                f"{link}: leads into the store {root}, which is not there: it was moved, or its"
                " disk is not mounted.\n"
                "  Bring it back, or link its old path to where it is now:"
                f" ln -s NEW_STORE {shlex.quote(str(root))}"
            )
    return links


def note_cost(out: Path, **figures: float | str) -> None:
    """Add figures (tokens, rows, engine seconds …) to the step's cost, outside its content."""
    write_json(out / COST_FILE, {**read_cost(out), **figures})


def read_cost(out: Path) -> dict[str, float]:
    path = out / COST_FILE
    return read_json(path) if path.exists() else {}


STEP_FILE = "step.json"  # what the driver asked of a step
MANIFEST_FILE = "manifest.json"
STORE_MARKER = ".strop-store"  # in a store: that it is one, who uses it, what its runs read
COST_FILE = "cost.json"
DEVICES_FILE = "devices.jsonl"  # the shards that another kind of machine than the run's has made
DROPPED_FILE = "dropped.parquet"  # the rows that a stage left out, with their reasons
FUNNEL_FILE = "funnel.json"  # how many rows came in, were dropped for each reason, and went out
MODEL_FILE = "model.json"  # where a model's base and adapter are
CARD_FILE = "README.md"  # for the user: outside content, since no stage reads it
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's, which names the base by its path
# Where a local checkpoint is. Outside content: its bytes count, not its path.
PLACE_FILE = "place.json"
# Why a step that may fail made nothing. It is tried again whenever it is planned.
UNAVAILABLE_FILE = "absent.txt"
EQUAL_ANSWERS = "equal answers"  # the detail of a tie that no judge was asked about
# The setting of samples for the KL estimate alone: they are neither scored nor answers.
KL = "kl"


def read_step(folder: Path) -> dict[str, Any]:
    """A step's record, checked for what its readers rely on: its inputs' folders and its config."""
    step = read_json(folder / STEP_FILE)
    blocks = [step.get(name) for name in ("config", "inputs")] if isinstance(step, dict) else [None]
    is_record = all(isinstance(block, dict) for block in blocks)
    if not is_record or not all(isinstance(source, dict) for source in step["inputs"].values()):
        cause = ValueError("no config and inputs in it")
        raise UserError(_describe_damage(folder / STEP_FILE, "a step's record", cause))
    return step


def build_tree(flat: dict[str, Any]) -> dict[str, Any]:
    """Turn flat names such as `evals.sft.samples` into nested dicts."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


@dataclass(frozen=True)
class Artifact:
    path: Path


@dataclass(frozen=True)
class Prompts(Artifact):
    """One part of the prompts in hash order: `prompt_id, prompt` (messages), `columns` (JSON).

    Tools and calls are messages with the roles `tools` and `tool_calls` and JSON as content.
    """

    def read(self) -> "pl.DataFrame":
        return read_table(self.path / "prompts.parquet")

    def read_columns(self) -> dict[str, dict[str, Any]]:
        table = self.read()
        rows = zip(table["prompt_id"], table["columns"], strict=True)
        return {key: json.loads(text) for key, text in rows}


@dataclass(frozen=True)
class Decontamination(Artifact):
    """Hashed word n-grams of all evaluation prompts, which training data must not contain."""

    def read(self) -> "pl.DataFrame":
        return read_table(self.path / "ngrams.parquet")


@dataclass(frozen=True)
class Model(Artifact):
    """A base and at most one adapter.

    `model.json` says where they are: here, in another step, or outside the store. For an adapter it
    also keeps PEFT's config (`peft`), from which `write_adapter_config` writes the file for PEFT.
    """

    @cached_property
    def record(self) -> dict[str, Any]:
        record = read_object(file := self.path / MODEL_FILE)
        needed = "base" if "base" in record else "weights"
        is_placed = (self.path / PLACE_FILE).exists()
        return record if is_placed else read_object(file, **{needed: str})

    @property
    def weights(self) -> Path | str:
        """What `from_pretrained` opens as base: a folder, or a hub name with `revision`."""
        if "base" in self.record:
            return self._base.weights
        if (self.path / PLACE_FILE).exists():
            return Path(read_object(self.path / PLACE_FILE, weights=str)["weights"])
        place = self.record["weights"]
        return self.path / place if (self.path / place).exists() else place

    @property
    def revision(self) -> str | None:
        return self._base.revision if "base" in self.record else self.record.get("revision")

    @property
    def adapter(self) -> Path | None:
        return self.path / self.record["adapter"] if "adapter" in self.record else None

    @property
    def tokenizer(self) -> Path:
        return self.path / self.record["tokenizer"]

    @property
    def remote_code(self) -> bool:
        if "base" in self.record:
            return self._base.remote_code
        return self.record.get("remote_code", False)

    @property
    def _base(self) -> "Model":
        """An adapter names its base as `stage/fingerprint`."""
        return Model(find_step(find_store(self.path), self.record["base"]))

    def read_metrics(self) -> list[dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        try:
            lines = path.read_text().splitlines() if path.exists() else []
            return [json.loads(line) for line in lines]
        except (ValueError, RecursionError) as error:
            raise UserError(_describe_damage(path, "JSON lines", error)) from error


def write_adapter_config(model: Model) -> None:
    """Write an adapter's `adapter_config.json` so that it opens from any working directory.

    `model.json` keeps what PEFT wrote, with the base as a fingerprint. This adds where the base is
    now: a folder by its absolute path, a hub repository by name and revision. The file is outside
    content, so that it can follow a store that is moved.
    """
    assert model.adapter is not None
    weights = model.weights
    place = str(weights.absolute()) if isinstance(weights, Path) else weights
    config = {**model.record["peft"], "base_model_name_or_path": place, "revision": model.revision}
    file = model.adapter / ADAPTER_CONFIG
    if not file.exists() or json.loads(file.read_text()) != config:
        write_json(file, config)


@dataclass(frozen=True)
class Samples(Artifact):
    """`samples/*.parquet`: one shard a file, rows by prompt id, setting and index.

    `prompt` and `prompt_token_ids` are what is trained. `asked_token_ids` is what the sampler got
    instead, null where that is the same. `logprob` is that of the sampled tokens given what the
    sampler got, null where a stop string cut them or nothing reads it.
    """

    def read_shards(self) -> Iterator["pl.DataFrame"]:
        yield from _read_shards(self.path / "samples")

    def read(self, setting: str | None = None) -> "pl.DataFrame":
        import polars as pl

        table = pl.concat(self.read_shards())
        return table if setting is None else table.filter(pl.col("setting") == setting)


@dataclass(frozen=True)
class Scores(Artifact):
    """`scores/*.parquet`: `sample_id, prompt_id, scorer, score` (null: none), `status, detail`."""

    def read(self) -> "pl.DataFrame":
        import polars as pl

        return pl.concat(_read_shards(self.path / "scores"))


@dataclass(frozen=True)
class Pairs(Artifact):
    """`train.parquet, dev.parquet, unpaired.parquet, dropped.parquet, funnel.json`."""

    def read_train(self) -> "pl.DataFrame":
        return read_table(self.path / "train.parquet")

    def read_dev(self) -> "pl.DataFrame":
        return read_table(self.path / "dev.parquet")

    def read_unpaired(self) -> "pl.DataFrame":
        """Single answers with a label, of the prompts in train and in dev."""
        return read_table(self.path / "unpaired.parquet")

    def read_dropped(self) -> "pl.DataFrame":
        return read_table(self.path / DROPPED_FILE)

    def read_funnel(self) -> dict[str, Any]:
        return read_json(self.path / FUNNEL_FILE)


@dataclass(frozen=True)
class Logps(Artifact):
    """`logps.parquet`: `sample_id, prompt_id, logp` (sum over the completion), `tokens`."""

    def read(self) -> "pl.DataFrame":
        return read_table(self.path / "logps.parquet")


@dataclass(frozen=True)
class Verdicts(Artifact):
    """`verdicts.parquet`, a row for each order of the two answers.

    `prompt_id, a_id, b_id, order, winner` (a, b or tie; null when it failed), `probability` (that a
    wins), `judge, model, status, detail`; of a judge with five levels also `weight` (3 for much
    better).
    """

    def read(self) -> "pl.DataFrame":
        return read_table(self.path / "verdicts.parquet")


@dataclass(frozen=True)
class Metrics(Artifact):
    """One benchmark of one model.

    `metrics.json`: figures (`task, metric, value, stderr, n, higher_is_better`), which of them is
    the chief one, and how many prompts were cut. `items.parquet`, a row for each question:
    `task, doc_id, doc` (a hash), `metric, value`. If the benchmark could not run, there is only
    `absent.txt`, which says why.
    """

    @property
    def unavailable_reason(self) -> str | None:
        path = self.path / UNAVAILABLE_FILE
        return path.read_text().strip() if path.exists() else None

    def read(self) -> dict[str, Any]:
        return read_json(self.path / "metrics.json")

    def read_items(self) -> "pl.DataFrame":
        return read_table(self.path / "items.parquet")


class EvalArtifacts(TypedDict, total=False):
    """What one evaluated model brings to `evaluate`, without what could not be made."""

    model: Model
    samples: Samples
    scores: Scores
    logps: Logps
    metrics: dict[str, Metrics]


class ChatSet(TypedDict, total=False):
    """One chat benchmark: its questions, every model's answers, and the judges' verdicts."""

    prompts: Prompts
    evals: dict[str, EvalArtifacts]
    duels: dict[str, dict[str, dict[str, Verdicts]]]


@dataclass(frozen=True)
class Report(Artifact):
    def read(self) -> dict[str, Any]:
        return read_json(self.path / "report.json")


MADE_BY: dict[str, type[Artifact]] = {
    "prompts": Prompts,
    "base": Model,
    "sft": Model,
    "reward": Model,
    "sample": Samples,
    "revise": Samples,
    "steps": Prompts,
    "score": Scores,
    "offline": Pairs,
    "pair": Pairs,
    "reference": Logps,
    "train": Model,
    "merge": Model,
    "gate": Model,
    "benchmark": Metrics,
    "duel": Verdicts,
    "evaluate": Report,
}


def open_artifact(stage: str, path: Path, part: str | None = None) -> Artifact:
    if part == "decontamination":
        return Decontamination(path / part)
    if stage == "gate":  # opens as the model that it points to
        target = read_object(path / MODEL_FILE, target=str)["target"]
        return Model(find_step(find_store(path), target))
    return MADE_BY[stage](path / part if part else path)
