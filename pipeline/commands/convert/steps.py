"""The steps of a training: batch, lengths, schedule, precision, checkpoints, tracker."""

from functools import cache
from typing import Any

import yaml

from pipeline.commands.convert.objective import describe_origin
from pipeline.commands.convert.recipe import Recipe
from pipeline.commands.convert.source import Source, is_plain, show
from pipeline.config.compose import CONF
from pipeline.config.training import MAX_RATE_FACTOR
from pipeline.errors import pluralize

SCHEDULERS = (
    "cosine", "linear", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial",
)  # fmt: skip
ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw")  # one formula
# Optimizers that axolotl brings along; transformers does not have them.
FOREIGN_OPTIMIZERS = (
    "optimi_adamw", "ao_adamw_4bit", "ao_adamw_8bit", "ao_adamw_fp8", "adopt_adamw",
    "came_pytorch", "muon", "dion",
)  # fmt: skip
# What TRL's configs take and the result depends on.
ARGS = (
    "adam_beta1", "adam_beta2", "adam_epsilon", "neftune_noise_alpha", "router_aux_loss_coef",
)  # fmt: skip


def convert_steps(source: Source, recipe: Recipe, adapter: str) -> None:
    _convert_rate(source, recipe, adapter)
    _set_number(source, recipe, "epochs", "train.epochs")
    convert_batch(source, recipe)
    _convert_schedule(source, recipe)
    _convert_warmup(source, recipe)
    _set_number(source, recipe, "weight_decay", "train.weight_decay")
    _set_number(source, recipe, "clip", "train.clip")
    _convert_optimizer(source, recipe)
    _convert_checkpointing(source, recipe)
    _convert_interval(source, recipe, "eval_every", "train.eval_every")
    _convert_interval(source, recipe, "save_every", "train.runtime.save_every")
    if source.flag("by_length"):
        recipe.set("train.runtime.by_length", True, source.key("by_length"))
    if source.flag("save_merged") and adapter != "full":
        recipe.set("train.adapter.save_merged", True, source.key("save_merged"))
    if source.has("seed"):
        recipe.set("seed", int(source.number("seed") or 0))
    for name in ARGS:
        if value := source.number(name):
            recipe.set(f"train.args.{name}", value, source.key(name))


def _set_number(source: Source, recipe: Recipe, name: str, knob: str) -> None:
    value = source.number(name)
    if value is not None:
        value = int(value) if name == "epochs" and value == int(value) else value
        recipe.set(knob, value, _describe(source, name, knob))


def _describe(source: Source, name: str, knob: str) -> str:
    """Nothing where the file's key has the knob's name."""
    origin = describe_origin(source, name)
    return "" if origin == knob.rpartition(".")[2] else origin


def _convert_rate(source: Source, recipe: Recipe, adapter: str) -> None:
    rate = source.number("rate")
    if rate is None:
        return
    recipe.set("train.learning_rate", rate, _describe(source, "rate", "train.learning_rate"))
    usual = read_usual_rate(recipe.choices["train"][0], adapter)
    factor, in_words = MAX_RATE_FACTOR[adapter]
    if rate > usual * factor:
        recipe.set(
            "train.runtime.typical_learning_rate",
            rate,
            f"the rate is over {in_words} times the usual one ({usual:g}), which breaks more models"
            " than it trains; without this line it is refused",
        )


@cache
def read_usual_rate(train: str, adapter: str) -> float:
    """train.runtime.typical_learning_rate: the objective's own, or else the adapter's."""
    runtime = _read_conf(f"train/{train}.yaml").get("runtime", {})
    own = runtime.get("typical_learning_rate", "${}")
    if not str(own).startswith("${"):
        return float(own)
    file = "full" if adapter == "full" else "lora"
    return float(_read_conf(f"adapter/{file}.yaml")["learning_rate"])


def _read_conf(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONF / name).read_text())
    return content


def convert_batch(source: Source, recipe: Recipe) -> None:
    gpus, rows = source.gpus, source.count("micro_batch") or 1
    steps = source.count("accumulation") or 1
    if source.has("batch_of_device"):
        steps = max(1, (source.count("batch_of_device") or 1) // rows)
    recipe.set("train.batch", rows * steps * gpus, f"{rows} × {steps} × {pluralize(gpus, 'GPU')}")
    names = f"{source.key('micro_batch')} and {source.key('accumulation')}"
    recipe.head.append(
        f"The batch is that of {pluralize(gpus, 'GPU')}: the file names its rows on each GPU"
        f" ({names}), and not the number of GPUs. For another number convert it again with gpus=N."
    )


def _convert_schedule(source: Source, recipe: Recipe) -> None:
    name = show(source.text("scheduler") or "")
    if name in SCHEDULERS:
        recipe.set("train.scheduler", name, _describe(source, "scheduler", "train.scheduler"))
        kwargs = source.value("scheduler_kwargs")
        if isinstance(kwargs, dict) and kwargs and is_plain(kwargs):
            recipe.set("train.args.lr_scheduler_kwargs", kwargs)
    elif name:
        recipe.set("train.scheduler", "cosine", f"for {name}, which Strop does not have")
        kwargs = source.value("scheduler_kwargs")
        detail = f" with {_flatten(kwargs)}" if kwargs else ""
        effect = f"Would have changed the learning rate by {name}{detail}; here by cosine."
        recipe.lose(source.key("scheduler"), name, effect)
        if kwargs:
            reason = f"Belongs to {source.key('scheduler')}: see there."
            recipe.lose(source.key("scheduler_kwargs"), show(kwargs), reason)


def _flatten(kwargs: Any) -> str:
    if not isinstance(kwargs, dict):
        return show(kwargs)
    return ", ".join(f"{key}={show(value)}" for key, value in kwargs.items())


def _convert_warmup(source: Source, recipe: Recipe) -> None:
    """A share of the steps. How many steps there are depends on the data."""
    share, steps = source.number("warmup_share"), source.number("warmup_steps")
    if source.has("warmup_share") and share is not None and 0 <= share < 1:
        recipe.set("train.warmup", share, source.key("warmup_share"))
    elif steps and steps >= 1:
        recipe.lose(
            source.key("warmup_steps"),
            show(steps),
            f"Would have raised the rate during {steps:g} steps. Here warm-up is a share of the"
            f" steps, 0.1 by default: with N steps give train.warmup={steps:g}/N.",
        )
    elif steps is not None:
        recipe.set("train.warmup", steps, source.key("warmup_steps"))
    elif share is not None:
        recipe.set("train.warmup", share, describe_origin(source, "warmup_share"))


def _convert_optimizer(source: Source, recipe: Recipe) -> None:
    name = source.text("optimizer")
    if name in FOREIGN_OPTIMIZERS:
        effect = f"Would have trained with {name}, which transformers does not have; here AdamW."
        recipe.lose(source.key("optimizer"), name or "", effect)
    elif name and name not in ADAMW:
        recipe.set("train.args.optim", name, source.key("optimizer"))
    elif name and source.has("optimizer"):
        recipe.note(source.key("optimizer"), name, "AdamW is the default here too.")


def _convert_checkpointing(source: Source, recipe: Recipe) -> None:
    value = source.value("gradient_checkpointing")
    if isinstance(value, str) and value not in ("true", "false"):  # offload, unsloth
        effect = "Would have moved activations to the CPU or the disk; here they are recomputed."
        recipe.lose(source.key("gradient_checkpointing"), value, effect)
        recipe.set("train.gradient_checkpointing", True)
    elif value is not None:
        enabled = source.flag("gradient_checkpointing")
        comment = _describe(source, "gradient_checkpointing", "train.gradient_checkpointing")
        recipe.set("train.gradient_checkpointing", enabled, comment)
    elif source.value("no_checkpointing") is not None:
        enabled = not source.flag("no_checkpointing")
        comment = source.key("no_checkpointing")
        recipe.set("train.gradient_checkpointing", enabled, comment)


def _convert_interval(source: Source, recipe: Recipe, name: str, knob: str) -> None:
    """A number of steps. Below 1 it is a share of the training, which Strop does not take."""
    steps = source.number(name) if source.has(name) else None
    if steps is not None and steps >= 1:
        recipe.set(knob, int(steps), _describe(source, name, knob))
    elif steps:
        effect = f"A share of the training. Here {knob} counts steps."
        recipe.lose(source.key(name), show(steps), effect)


def convert_lengths(source: Source, recipe: Recipe) -> None:
    """One length of both becomes two limits, since here no prompt is cut and no pair is either."""
    whole, prompt = source.count("length"), source.count("prompt_length")
    completion = source.count("completion_length")
    if prompt and completion:
        whole = prompt + completion
    if whole is None or whole < 2:
        return
    if completion and completion < whole:
        prompt = whole - completion
        origin = source.key("completion_length")
    elif prompt and prompt < whole:
        origin = source.key("prompt_length")
    else:
        prompt = whole // 2
        origin = "half: the file has one length for both; longer prompts are dropped and counted"
    recipe.set("limits.prompt", prompt, origin)
    name = describe_origin(source, "length")
    recipe.set("limits.completion", whole - prompt, f"together {whole}, {name}")


def convert_precision(source: Source, recipe: Recipe) -> None:
    """What computes. `dtype: auto` is bfloat16 where the device has it."""
    half, brain = source.value("fp16"), source.value("bf16")
    if brain is True or source.value("pure_bf16") is True:
        recipe.set("dtype", "bfloat16", source.key("bf16" if brain else "pure_bf16"))
    elif half is True:
        effect = "float16 overflows in training without loss scaling. Here dtype=auto: bfloat16"
        recipe.lose(source.key("fp16"), "true", f"{effect} where the device has it, else float32.")
    elif brain is False and source.has("bf16"):
        recipe.set("dtype", "float32", f"{source.key('bf16')}: false")
    elif source.has("bf16"):
        recipe.note(source.key("bf16"), show(brain), "dtype=auto means the same.")
    weights = source.text("weights_dtype")
    if weights == "float16":
        effect = "Would have loaded the weights in float16; here in dtype."
        recipe.lose(source.key("weights_dtype"), weights, effect)
    elif weights:
        recipe.note(source.key("weights_dtype"), weights, "Weights are loaded as dtype says.")
    elif "weights_dtype" in source.names:
        source.value("weights_dtype")


def convert_tracker(source: Source, recipe: Recipe, trackers: list[str]) -> None:
    known = [name for name in trackers if name in ("wandb", "tensorboard")]
    for name in trackers:
        if name not in known and name not in ("none", "all"):
            effect = f"Would have sent the curves to {name}; Strop has wandb and tensorboard."
            recipe.lose("report_to", name, effect)
    if "all" in trackers:
        effect = "Would have used each tracker installed; here give tracker=wandb or tensorboard."
        recipe.lose("report_to", "all", effect)
    chosen = "wandb" if "wandb" in known else known[0] if known else None
    if len(known) > 1:
        recipe.lose("report_to", "tensorboard", "A run has one tracker here: tracker=tensorboard.")
    if chosen:
        recipe.choose("tracker", chosen, source.key("trackers"))
    for name in ("project", "entity", "name", "mode"):
        value = source.text(f"tracker_{name}")
        if value and chosen == "wandb" and (name != "mode" or value in ("online", "offline")):
            recipe.set(f"tracker.{name}", value, source.key(f"tracker_{name}"))
        elif value:
            effect = f"A label for wandb: tracker=wandb tracker.{name}={value}"
            recipe.lose(source.key(f"tracker_{name}"), value, effect)
