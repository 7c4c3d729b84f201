"""The objective: which file of conf/train/ a trainer and its losses are, and what they need."""

from dataclasses import dataclass

from pipeline.commands.convert.recipe import Recipe
from pipeline.commands.convert.source import Source, show
from pipeline.config.training import explain_unusual_beta
from pipeline.config.trl_args import LOSSES, SMOOTHED_LOSSES, couples_rows
from pipeline.errors import UserError, suggest

# Names of older versions and of other tools.
OLD_NAMES = {
    "kto_pair": "kto",
    "bco": "bco_pair",
    "aot_pair": "aot",
    "sppo": "sppo_hard",
    "exo": "exo_pair",
    "nca": "nca_pair",
    "alphapo": "simpo",
}
# The losses of trainers that are separate there.
SEPARATE_LOSSES = {
    **LOSSES,
    "cpo": ("sigmoid", "hinge", "ipo", "simpo"),
    "orpo": ("orpo",),
}
# Losses that another trainer than DPO's has.
TRAINERS = {
    "simpo": "cpo",
    "orpo": "orpo",
    "kto": "kto",
    "apo_zero_unpaired": "kto",
}
# The file of conf/train/ where its name is not that of the loss.
FILES = {
    ("dpo", "sigmoid"): "dpo",
    ("dpo", "exo_pair"): "exo",
    ("dpo", "nca_pair"): "nca",
    ("dpo", "soft_sigmoid"): "soft_dpo",
}
# The losses of files whose losses may be replaced.
FILE_LOSSES = {"dpo": ["sigmoid"], "cpo": ["sigmoid", "sft"], "simpo": ["simpo"]}
# What single losses read, by the names of TRL's fields.
LOSS_ARGS = {
    "dpo": ("use_weighting", "ld_alpha", "sync_ref_model", "ref_model_mixup_alpha",
            "ref_model_sync_steps", "f_divergence_type", "f_alpha_divergence_coef",
            "discopop_tau"),
    "cpo": ("simpo_gamma", "cpo_alpha", "alpha"),
    "kto": ("desirable_weight", "undesirable_weight"),
    "orpo": (),
}  # fmt: skip
READ_WITH_SYNC = ("ref_model_mixup_alpha", "ref_model_sync_steps")
READ_BY_LOSS = {"simpo_gamma": "simpo", "alpha": "simpo", "discopop_tau": "discopop"}


@dataclass(frozen=True)
class Objective:
    trainer: str  # there: dpo | cpo | orpo | kto
    losses: list[str]
    origin: str  # the key that says so


def name_objective(source: Source, trainer: str, losses: list[str], origin: str) -> Objective:
    """By today's names. A loss that only another trainer has chooses that trainer."""
    names = [OLD_NAMES.get(loss, loss) for loss in losses]
    if len(names) == 1 and trainer == "dpo":
        trainer = TRAINERS.get(names[0], trainer)
    known = SEPARATE_LOSSES[trainer]
    for given, name in zip(losses, names, strict=True):
        if name not in known:
            choices = sorted({*LOSSES["dpo"], *TRAINERS} if trainer == "dpo" else known)
            raise UserError(
                f"{source.path}: {source.key('loss')}: {given}: no loss of Strop's {trainer}"
                f" trainer has this name.\n  {suggest(given, choices)}"
            )
    return Objective(trainer, names, origin)


def convert_objective(source: Source, recipe: Recipe, objective: Objective) -> None:
    trainer, losses = objective.trainer, [*objective.losses]
    args: dict[str, object] = {}
    if trainer == "dpo" and source.flag("reference_free"):
        trainer, args = _leave_reference(source, recipe, losses)
    args |= _convert_smoothing(source, recipe, trainer, losses)
    args = {**_read_loss_args(source, trainer, losses), **args}
    weights = _convert_imitation(source, recipe, trainer, losses, args)
    file = _choose_variant(_choose_file(trainer, losses), args)
    recipe.choose("train", file, objective.origin)
    if losses != FILE_LOSSES.get(file, losses):
        recipe.set("train.loss", losses, source.key("loss"))
    if weights or file == "cpo":
        recipe.set("train.loss_weights", weights or None, _describe_weights(source))
    _convert_beta(source, recipe, losses)
    _convert_reference(source, recipe, trainer, args)
    for name, value in args.items():
        recipe.set(f"train.args.{name}", value, _describe_arg(source, name))
    _convert_group(source, recipe, trainer, losses)


def _convert_beta(source: Source, recipe: Recipe, losses: list[str]) -> None:
    beta = source.number("beta")
    recipe.set("train.beta", beta, describe_origin(source, "beta"))
    if beta and (fault := explain_unusual_beta(losses, beta, None)):
        recipe.set(
            "train.runtime.typical_beta", beta, f"train.{fault}; without this line it is refused"
        )


def _leave_reference(
    source: Source, recipe: Recipe, losses: list[str]
) -> tuple[str, dict[str, object]]:
    """DPO without a reference is CPO without its likelihood, for the losses that CPO has."""
    key = source.key("reference_free")
    if len(losses) == 1 and losses[0] in SEPARATE_LOSSES["cpo"]:
        recipe.note(key, "true", "train=cpo without the likelihood is DPO without a reference.")
        return "cpo", {"cpo_alpha": 0.0}
    effect = f"Would have left out the reference. {', '.join(losses)} needs one here."
    recipe.lose(key, "true", effect)
    return "dpo", {}


def _convert_imitation(
    source: Source,
    recipe: Recipe,
    trainer: str,
    losses: list[str],
    args: dict[str, object],
) -> list[float]:
    """The weights of the losses. The likelihood of chosen answers is one more loss, added here."""
    weights, imitation = source.numbers("loss_weights"), source.number("imitation") or 0.0
    if trainer == "cpo":
        alpha = args.pop("cpo_alpha", 0.0)
        assert isinstance(alpha, float | int)
        imitation += alpha
        if source.has("cpo_alpha") and not alpha:
            recipe.note(source.key("cpo_alpha"), show(alpha), "No loss of chosen answers is added.")
    if not imitation:
        return weights
    if trainer in ("dpo", "cpo"):
        weights = [*(weights or [1.0] * len(losses)), imitation]
        losses.append("sft")
        return weights
    effect = "Would have added the likelihood of chosen answers with this weight."
    recipe.lose(source.key("imitation"), show(imitation), effect)
    return weights


def describe_origin(source: Source, name: str) -> str:
    """The key that a value comes from, or whose default it is."""
    if source.has(name):
        return source.key(name)
    return f"{source.key(name)}: its default there" if name in source.names else "its default there"


def _describe_arg(source: Source, name: str) -> str:
    key = source.key("smoothing") if name == "label_smoothing" else source.key(name)
    return key if source.keys.get(key) is not None else "its default there"


def _describe_weights(source: Source) -> str:
    names = "loss_weights", "imitation", "cpo_alpha"
    return ", ".join(source.key(name) for name in names if source.has(name))


def _convert_smoothing(
    source: Source, recipe: Recipe, trainer: str, losses: list[str]
) -> dict[str, object]:
    """Label smoothing. With `sigmoid` it is the loss cdpo, by which `losses` is replaced here."""
    smoothing = source.number("smoothing")
    if not smoothing:  # in TRL robust with 0 is sigmoid, and here its file has 0.1
        return {"label_smoothing": 0.0} if losses == ["robust"] else {}
    if trainer in ("dpo", "cpo") and "sigmoid" in losses:
        losses[losses.index("sigmoid")] = "cdpo"
    if trainer in ("dpo", "cpo") and set(losses) & set(SMOOTHED_LOSSES["dpo"]):
        return {"label_smoothing": smoothing}
    effect = f"Nothing: {', '.join(losses)} does not read it."
    recipe.lose(source.key("smoothing"), show(smoothing), effect)
    return {}


def _read_loss_args(source: Source, trainer: str, losses: list[str]) -> dict[str, object]:
    """The arguments of the losses. False and null switch one off."""
    names = [name for name in LOSS_ARGS[trainer] if _is_read(source, name, losses)]
    values = {name: source.value(name) for name in names}  # 0 is a value, False switches one off
    given = [name for name, value in values.items() if value is not None and value is not False]
    return {name: _read_arg(source, name) for name in given}


def _is_read(source: Source, name: str, losses: list[str]) -> bool:
    if name in READ_WITH_SYNC:
        return source.flag("sync_ref_model")
    if name == "f_alpha_divergence_coef":
        return source.text("f_divergence_type") == "alpha_divergence"
    return name not in READ_BY_LOSS or READ_BY_LOSS[name] in losses


def _read_arg(source: Source, name: str) -> object:
    match name:
        case "use_weighting" | "sync_ref_model":
            return source.flag(name)
        case "ref_model_sync_steps":
            return source.count(name)
        case "f_divergence_type":
            return source.text(name)
    return source.number(name)


def _choose_file(trainer: str, losses: list[str]) -> str:
    if trainer == "cpo":
        return "simpo" if "simpo" in losses else "cpo"
    if losses == ["sigmoid", "sft"]:
        return "rpo"
    if len(losses) > 1:
        return "dpo"
    return FILES.get((trainer, losses[0]), losses[0])


def _choose_variant(file: str, args: dict[str, object]) -> str:
    """The file of a variant of DPO that an argument makes."""
    variants = {"use_weighting": "wpo", "ld_alpha": "ld_dpo", "sync_ref_model": "tr_dpo"}
    chosen = [variant for name, variant in variants.items() if args.get(name) is not None]
    return chosen[0] if file == "dpo" and len(chosen) == 1 else file


def _convert_reference(
    source: Source, recipe: Recipe, trainer: str, args: dict[str, object]
) -> None:
    moves = args.get("ld_alpha") is not None or args.get("sync_ref_model")
    if trainer == "dpo" and moves:
        recipe.set("train.reference_logps", "online")
    precomputed = source.value("precompute")
    if precomputed is not None:
        recipe.note(
            source.key("precompute"),
            show(precomputed),
            "train.reference_logps says where the reference's log-probabilities come from;"
            " the result is the same.",
        )


def _convert_group(source: Source, recipe: Recipe, trainer: str, losses: list[str]) -> None:
    """Rows that a loss couples: there the rows of a forward pass, here a knob."""
    if not couples_rows("kto" if trainer == "kto" else "dpo", losses):
        if recipe.choices["train"][0] == "cpo":
            recipe.set("train.loss_group", None)
            recipe.set("train.runtime.micro_batch", "auto")
        return
    rows, processes = source.count("micro_batch") or 1, source.gpus
    if trainer == "kto":
        group = max(2, rows * processes)
        recipe.set("train.loss_group", group, f"{source.key('micro_batch')} on all GPUs")
    else:
        recipe.set("train.loss_group", rows, source.key("micro_batch"))
