"""The adapter, and the bits in which its base is kept."""

from typing import Literal

from pipeline.commands.convert.objective import describe_origin
from pipeline.commands.convert.recipe import Recipe
from pipeline.commands.convert.source import Source, show

ALL_LINEAR = ("all", "all-linear", "all_linear")


def convert_adapter(
    source: Source, recipe: Recipe, *, is_lora: bool, bits: int | None, origin: str
) -> str:
    """Choose the adapter and its knobs. Returns its name: full | lora | qlora."""
    kind: Literal["full", "lora", "qlora"] = "full"
    if is_lora:
        kind = "qlora" if bits else "lora"
    if kind == "full":
        _account_for_full(source, recipe, origin)
        return kind
    recipe.choose("adapter", kind, origin)
    if (rank := source.count("rank")) is None:
        raise source.refuse("rank", "the rank of the adapter, a whole number from 1")
    recipe.set("train.adapter.rank", rank, describe_origin(source, "rank"))
    alpha, alpha_origin = source.number("adapter_alpha"), describe_origin(source, "adapter_alpha")
    if alpha is None:  # in LLaMA-Factory
        alpha, alpha_origin = 2 * rank, f"{alpha_origin}, twice the rank"
    recipe.set("train.adapter.alpha", alpha, alpha_origin)
    for name in ("rank_stabilized", "dora"):
        if source.flag(name):
            recipe.set(f"train.adapter.{name}", True, source.key(name))
    _convert_dropout(source, recipe)
    _convert_targets(source, recipe)
    if bits:
        _convert_bits(source, recipe, bits)
    return kind


def _account_for_full(source: Source, recipe: Recipe, origin: str) -> None:
    if source.has(origin) and origin not in [key for key, *_ in recipe.lost]:
        recipe.note(origin, show(source.value(origin)), "adapter=full is the default here.")
    for name in ("rank", "adapter_alpha", "dropout", "targets", "rank_stabilized", "dora"):
        if source.has(name):
            value = show(source.value(name))
            recipe.lose(source.key(name), value, "Nothing: the file trains every weight.")


def _convert_dropout(source: Source, recipe: Recipe) -> None:
    """TRL switches all dropout off unless it is asked not to, there as here."""
    dropout = source.number("dropout")
    is_kept = source.value("disable_dropout") is False
    if dropout and is_kept:
        recipe.set("train.adapter.dropout", dropout, source.key("dropout"))
        recipe.set("train.args.disable_dropout", False)
    elif dropout and source.has("dropout"):
        recipe.lose(
            source.key("dropout"),
            show(dropout),
            "Nothing: the trainer switches dropout off, there as here. To use it:"
            f" train.adapter.dropout={show(dropout)} train.args.disable_dropout=false",
        )


def _convert_targets(source: Source, recipe: Recipe) -> None:
    targets = source.texts("targets")
    if source.flag("all_linear") or any(name in ALL_LINEAR for name in targets):
        recipe.set("train.adapter.targets", "all-linear", _name_targets(source))
    elif targets:
        recipe.set("train.adapter.targets", targets, source.key("targets"))
    else:
        recipe.set(
            "train.adapter.targets",
            "all-linear",
            f"without {source.key('targets')}, PEFT takes a few layers by architecture: for Llama"
            " [q_proj, v_proj]",
        )


def _name_targets(source: Source) -> str:
    return source.key("all_linear") if source.flag("all_linear") else source.key("targets")


def _convert_bits(source: Source, recipe: Recipe, bits: int) -> None:
    recipe.set("train.adapter.quantization.bits", bits, source.key(f"load_{bits}_bits"))
    if bits == 4:
        double = source.flag("double")
        recipe.set("train.adapter.quantization.double", double, describe_origin(source, "double"))
    if (kind := source.text("bits_kind")) and kind != "nf4":
        effect = "Would have stored 4 bits as FP4; here it is NF4, which loses less."
        recipe.lose(source.key("bits_kind"), kind, effect)
