"""What the trainings of a plan will take, as far as it is known before anything runs.

Exact where the pairs are in the store, an upper bound where they are not. What is not known yet is
left out.
"""

import re
from collections.abc import Iterator

from pipeline import hardware, store
from pipeline.artifacts import Pairs
from pipeline.config import LoraAdapter, OnlineTraining, TrainConfig
from pipeline.errors import UserError
from pipeline.models.lora_targets import explain_unknown_target
from pipeline.preflight.lineage import find_shape, find_weights
from pipeline.preflight.row_counts import count_online_rows, count_training_rows
from pipeline.resources import model_shape, training_fit
from pipeline.resources.model_shape import Shape
from pipeline.resources.training_fit import Pace, TrainingFit, TrainingRows
from pipeline.status import RunPlan
from pipeline.step import Step


class TrainingFits:
    """The fit of each training of a plan, computed when it is first asked for.

    `is_here`: whether this machine trains, and not a cluster, whose memory is not known.
    """

    def __init__(self, run_plan: RunPlan, is_here: bool = True):
        self.run_plan, self.is_here = run_plan, is_here
        self._fits: dict[str, TrainingFit] = {}

    def find(self, step: Step, cfg: TrainConfig) -> TrainingFit:
        fingerprint = self.run_plan.fingerprint(step)
        if fingerprint not in self._fits:
            self._fits[fingerprint] = self._compute(step, cfg)
        return self._fits[fingerprint]

    def _compute(self, step: Step, cfg: TrainConfig) -> TrainingFit:
        shape = find_shape(self.run_plan, step.inputs["init"])
        world = cfg.runtime.world_size(len(hardware.list_gpus()))
        rows, pace = self._count_rows(step, cfg), _find_pace(self.run_plan, step, cfg, shape)
        return training_fit.fit_training(shape, cfg, rows, world, pace)

    def _count_rows(self, step: Step, cfg: TrainConfig) -> TrainingRows | None:
        if isinstance(cfg, OnlineTraining):
            count = count_online_rows(self.run_plan, cfg)
            return None if count is None else training_fit.count_training(cfg, count, [])
        lengths = _read_lengths(self.run_plan, step, cfg)
        sides = cfg.answers_per_row
        if lengths:
            return training_fit.count_training(cfg, len(lengths) // sides, lengths)
        count = count_training_rows(self.run_plan, step, 2 // sides)
        return None if count is None else training_fit.count_training(cfg, count, [])

    def check(self, step: Step, cfg: TrainConfig) -> None:
        if fault := self.explain_misfit(step, cfg):
            raise UserError(fault)

    def explain_misfit(self, step: Step, cfg: TrainConfig) -> str | None:
        """Why this cannot be trained here, by what is known of its pairs; None if it can."""
        gpus = len(hardware.list_gpus())
        unfit = hardware.explain_missing_gpus() or cfg.explain_misfit(gpus)
        if self.is_here and unfit:
            return unfit
        if fault := _find_unknown_layer(self.run_plan, step, cfg):
            return fault
        if not self.is_here:
            return None
        return self.find(step, cfg).explain_shortage(self.run_plan.root)

    def describe(self, step: Step, cfg: TrainConfig) -> Iterator[str]:
        fit = self.find(step, cfg)
        if fit.rows:
            yield fit.rows.describe(cfg.batch)
        else:
            yield "how many rows is not known before prompts and pairs are counted"
        if fit.rows and fit.rows.lengths:
            histogram = training_fit.build_histogram(fit.rows.lengths)
            yield training_fit.format_histogram(histogram)
        yield from fit.describe()
        if fit.shape and fit.rows and not fit.seconds:
            yield "time     not known before it is measured: strop pilot"
        if cfg.low_rate_warning:
            yield f"! {cfg.low_rate_warning}"
        # With an upper bound of rows this warns only if even that is too few.
        if fit.rows and (warning := cfg.explain_few_steps(fit.rows.steps)):
            yield f"! {warning}"
        if fault := self.explain_misfit(step, cfg):
            yield from f"! a run here refuses this: {fault}".splitlines()


def _find_unknown_layer(run_plan: RunPlan, step: Step, cfg: TrainConfig) -> str | None:
    """The error for a target that no local layer has.

    A pattern is of whole names, which may differ between a model and its files: training checks it.
    """
    folder, adapter = find_weights(run_plan, step.inputs["init"]), cfg.adapter
    if folder is None or not isinstance(adapter, LoraAdapter) or isinstance(adapter.targets, str):
        return None
    layers = model_shape.read_layer_names(folder)
    linear = [name for name in layers if not re.search("norm|embed", name.rpartition(".")[2])]
    if not layers:
        return None
    knob = f"{cfg.knob}.adapter.targets"
    return explain_unknown_target(adapter.targets, layers, linear, "lm_head", knob)


def _read_lengths(run_plan: RunPlan, step: Step, cfg: TrainConfig) -> list[int]:
    """Tokens of each sequence; none unless all the pairs are built."""
    import polars as pl

    folders = [run_plan.folder(source) for source in step.inputs["pairs"]]
    if any(not (folder / "train.parquet").is_file() for folder in folders):
        return []
    pairs = [Pairs(folder) for folder in folders]
    if cfg.trainer != "kto":
        return training_fit.sequence_lengths(
            pl.concat(each.read_train() for each in pairs), "token_ids"
        )
    held_out = pl.concat(each.read_dev()["prompt_id"] for each in pairs)
    unpaired = pl.concat(each.read_unpaired() for each in pairs).unique(["sample_id", "label"])
    trained = unpaired.filter(~pl.col("prompt_id").is_in(held_out.implode()))
    return training_fit.sequence_lengths(trained, "token_ids")


def _find_pace(run_plan: RunPlan, step: Step, cfg: TrainConfig, shape: Shape | None) -> Pace | None:
    """The newest like training's pace: the same model, or the same shape on this device."""
    init, device = run_plan.fingerprint(step.inputs["init"]), hardware.describe_device()
    for made in store.list_valid_manifests(run_plan.roots, "train"):
        cost = made["cost"]
        same_model = made["inputs"].get("init", {}).get("fingerprint") == init
        same_shape = shape is not None and cost.get("parameters") == shape.parameters
        same_device = made.get("provenance", {}).get("device") == device
        same_adapter = made["config"].get("adapter", {}).get("kind") == cfg.adapter.kind
        same_kind = ("request" in made["config"]) == cfg.is_online
        is_alike = same_kind and same_adapter and (same_model or (same_shape and same_device))
        if is_alike and "loop_seconds" in cost:
            return _compute_pace(made)
    return None


def _compute_pace(made: store.Manifest) -> Pace:
    """By its last attempt. One that was killed noted nothing, and its seconds count nowhere."""
    cost = made["cost"]
    tokens = cost["tokens"] / cost["steps"] / cost["step_seconds"]
    rows = cost.get("completions") or cost["pairs"] * made["config"]["epochs"]
    rest = sum(cost["phases"].values()) - cost["loop_seconds"]  # below 0 if no step was left
    evaluation = cost.get("evaluation_seconds", 0.0)
    return Pace(tokens, evaluation, max(rest, 0.0), cost["tokens"] / rows)
