"""Training: optimisation, adapters, the objective."""

from math import ceil
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    model_validator,
)

from pipeline.config.base import Block, Seed, Share, TrainingDtype, name_own_knobs
from pipeline.config.demonstrations import OptionalRehearsal
from pipeline.config.guards import GuardsConfig
from pipeline.config.kernels import Attention, explain_args, explain_attention
from pipeline.config.launch import SHARDED_WEIGHTS, LaunchedRuntime, TrainerRuntime
from pipeline.config.trl_args import LOSS_COLUMNS, ONLINE, check_args, couples_rows
from pipeline.errors import pluralize

# The values of β that are published and in use, by loss. A margin per token needs a larger one.
TYPICAL_BETA: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("sigmoid", "cdpo", "robust", "hinge", "exo_pair", "aot", "aot_unpaired", "apo_zero",
         "apo_down", "discopop", "soft_sigmoid", "kto", "apo_zero_unpaired"),
        (0.01, 0.5),
    ),
    **dict.fromkeys(("bco_pair", "nca_pair"), (0.001, 0.1)),
    **dict.fromkeys(("ipo", "soft_ipo"), (0.01, 1.0)),
    **dict.fromkeys(("sppo", "sppo_hard"), (0.001, 0.1)),
    "reward_aware": (0.001, 0.5),
    **dict.fromkeys(("sigmoid_norm", "simpo"), (2.0, 10.0)),
    "orpo": (0.05, 1.0),
    **dict.fromkeys(
        ("dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo", "rloo"),
        (0.001, 0.1),
    ),
}  # fmt: skip
MAX_BETA_FACTOR = 20

PROMPT_TUNING = ("prefix", "prefix_tuning", "prompt", "prompt_tuning", "p_tuning")

# Times runtime.typical_learning_rate: conf/train/dpo.yaml explains why an adapter may have more.
MAX_RATE_FACTOR = {"full": (10, "ten"), "lora": (100, "a hundred"), "qlora": (100, "a hundred")}


class Optimization(Block):
    """What every trainer needs: its steps, and the rows of each."""

    learning_rate: PositiveFloat
    epochs: PositiveFloat
    batch: PositiveInt
    scheduler: Literal[
        "cosine", "linear", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial"
    ]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NonNegativeFloat
    clip: PositiveFloat
    max_length: PositiveInt
    dtype: TrainingDtype
    gradient_checkpointing: bool
    seed: Seed
    runtime: TrainerRuntime

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if isinstance(self.runtime.micro_batch, int) and self.batch % self.runtime.micro_batch:
            fits = max(n for n in range(1, self.runtime.micro_batch + 1) if self.batch % n == 0)
            raise ValueError(
                f"batch={self.batch} is not a multiple of"
                f" runtime.micro_batch={self.runtime.micro_batch}: an optimizer step would see"
                f" another number of rows; give runtime.micro_batch={fits}"
            )
        return self


def refuse_prompt_tuning(adapter: Any) -> Any:
    if isinstance(adapter, dict) and (kind := adapter.get("kind")) in PROMPT_TUNING:
        raise ValueError(
            f"an adapter of kind {kind} trains virtual tokens before the prompt instead of weights:"
            " it cannot be merged, vLLM does not sample from it, and a next round could not start"
            " from it. Use lora, qlora or full"
        )
    return adapter


class FullAdapter(Block):
    kind: Literal["full"]
    learning_rate: PositiveFloat


class Quantization(Block):
    """How QLoRA keeps its frozen base in memory."""

    bits: Literal[4, 8]
    double: bool


class LoraAdapter(Block):
    kind: Literal["lora", "qlora"]
    learning_rate: PositiveFloat
    rank: PositiveInt
    alpha: PositiveFloat
    rank_stabilized: bool
    dora: bool
    dropout: Share
    targets: str | list[str]
    quantization: Quantization | None
    save_merged: bool

    @property
    def outside_identity(self) -> frozenset[str]:
        """A merged copy can be made from a finished training at any time."""
        return frozenset({"save_merged"})

    @model_validator(mode="after")
    def _check_quantization(self) -> Self:
        if (self.kind == "qlora") != (self.quantization is not None):
            raise ValueError(
                f"kind={self.kind} does not fit its quantization: choose {{}}=lora or qlora"
            )
        return self


AdapterConfig = Annotated[
    FullAdapter | LoraAdapter, Field(discriminator="kind"), BeforeValidator(refuse_prompt_tuning)
]


def explain_unusual_beta(losses: list[str], beta: float, typical: float | None) -> str | None:
    """What is unusual about β, 20 times off or further; None: nothing is."""
    for name in losses:
        low, high = (typical, typical) if typical else TYPICAL_BETA.get(name, (beta, beta))
        if low / MAX_BETA_FACTOR < beta < high * MAX_BETA_FACTOR:
            continue
        way = "less" if beta < low else "more"
        usually = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        return (
            f"beta={beta:g} is {MAX_BETA_FACTOR} times {way} than {name} usually has"
            f" ({usually}), or further off"
        )
    return None


def name_adapter_mount(knob: str) -> str:
    """What the adapter of a training at `knob` is chosen by: a round has that of `train` so far."""
    return "adapter" if knob == "train" else f"+adapter@{knob}.adapter"


class PairWeight(Block):
    """What multiplies each pair's gradient: a column of the pairs."""

    column: Literal["weight", "margin"] | None
    scale: PositiveFloat


class TokenMask(Block):
    format_tokens: bool


class TrainConfig(Optimization):
    trainer: Literal["dpo", "kto", "grpo", "rloo"]
    loss: Annotated[list[str], Field(min_length=1)]
    loss_weights: list[float] | None
    weight: PairWeight
    mask: TokenMask
    beta: PositiveFloat
    reference_logps: Literal["precomputed", "online", "none"]
    loss_group: PositiveInt | None
    attention: Attention
    adapter: AdapterConfig
    eval_every: PositiveInt
    guards: GuardsConfig
    rehearsal: OptionalRehearsal
    args: dict[str, JsonValue]
    runtime: LaunchedRuntime
    _knob: str = PrivateAttr("train")

    @property
    def knob(self) -> str:
        """Where the user's config has it, for messages: outside identity, like a Step's."""
        return self._knob

    @property
    def mount(self) -> str:
        """What its file is chosen by."""
        return "train" if self.knob == "train" else f"train@{self.knob}"

    @property
    def adapter_mount(self) -> str:
        return name_adapter_mount(self.knob)

    def mounted_at(self, knob: str) -> Self:
        mounted = self.model_copy()
        mounted._knob = knob
        return mounted

    def name_knobs(self, text: str) -> str:
        """`{beta}` and `{}` of a text as the user types them."""
        return name_own_knobs(text, self.knob, self.mount)

    @property
    def outside_identity(self) -> frozenset[str]:
        """Kernels compute the same; a training without a weight or mask is as before they came."""
        used = {"weight": self.weight.column, "mask": self.mask.format_tokens}
        return frozenset({"attention", *(name for name, value in used.items() if not value)})

    @property
    def is_online(self) -> bool:
        """Whether the trainer samples and scores answers itself, and reads no pairs."""
        return self.trainer in ONLINE

    @property
    def answers_per_row(self) -> int:
        """The sequences of one row of its batch."""
        return 2 if self.trainer == "dpo" else 1

    @property
    def pair_columns(self) -> list[str]:
        """The columns of the pairs that the losses read."""
        return sorted({LOSS_COLUMNS[name] for name in self.loss if name in LOSS_COLUMNS})

    @model_validator(mode="after")
    def _check_learning_rate(self) -> Self:
        usual, (factor, in_words) = (
            self.runtime.typical_learning_rate,
            MAX_RATE_FACTOR[self.adapter.kind],
        )
        # 5e-6 counts as ten times 5e-7, whatever floating point makes of it.
        if self.learning_rate / usual > factor * 1.00001:
            raise ValueError(
                f"learning_rate={self.learning_rate:g} is over {in_words} times the usual rate"
                f" ({usual:g}): it breaks models of a billion parameters and more; for a smaller"
                f" one give runtime.typical_learning_rate={self.learning_rate:g} if you mean it"
            )
        return self

    @model_validator(mode="after")
    def _check_pair_knobs(self) -> Self:
        """What holds for pairs means nothing for single answers, and a mask changes references."""
        if self.trainer == "kto" and (self.weight.column or self.mask.format_tokens):
            knob = "weight.column" if self.weight.column else "mask.format_tokens"
            raise ValueError(
                f"{knob}: kto trains on unpaired answers, and this is of pairs;"
                " its own weights are args.desirable_weight and args.undesirable_weight"
            )
        if self.weight.column and (sorting := {"aot", "aot_unpaired"} & {*self.loss}):
            raise ValueError(
                f"weight.column: {min(sorting)} compares sorted values, which belong to no pair"
            )
        if self.mask.format_tokens and "orpo" in self.loss:
            raise ValueError("mask.format_tokens: the likelihood of orpo is of prompts as well")
        if self.mask.format_tokens and self.reference_logps == "precomputed":
            raise ValueError(
                "mask.format_tokens: precomputed reference values are of whole answers;"
                " give reference_logps=online"
            )
        return self

    @model_validator(mode="after")
    def _check_online(self) -> Self:
        """What reads pairs, or demonstrations, means nothing where answers are scored."""
        if not self.is_online:
            return self
        unread = {
            "weight.column": (self.weight.column, "null"),
            "mask.format_tokens": (self.mask.format_tokens, "false"),
            "loss_weights": (self.loss_weights, "null"),
            "rehearsal": (self.rehearsal, "null"),
            "guards.max_chosen_logp_drop": (self.guards.max_chosen_logp_drop, "null"),
        }
        for name, (value, off) in unread.items():
            if value:
                raise ValueError(
                    f"{name}: {self.trainer} learns from the scores of what it samples and reads"
                    f" no pairs or demonstrations; give {name}={off}"
                )
        if self.guards.stop_on not in (None, "score"):
            raise ValueError(
                f"guards.stop_on={self.guards.stop_on}: {self.trainer} has no dev pairs;"
                " give guards.stop_on=score with a guards.scorer"
            )
        return self

    @model_validator(mode="after")
    def _check_args(self) -> Self:
        dropout = getattr(self.adapter, "dropout", 0.0)
        check_args(
            self.trainer, self.args, self.loss, self.reference_logps, dropout, self.adapter.kind
        )
        if self.trainer == "kto" and self.guards.stop_on == "accuracy":
            raise ValueError(
                "guards.stop_on=accuracy: kto trains on unpaired answers, which have no accuracy;"
                " take loss or margin"
            )
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss):
            weights = pluralize(len(self.loss_weights), "weight")
            raise ValueError(f"loss_weights has {weights} for {pluralize(len(self.loss), 'loss')}")
        return self

    @model_validator(mode="after")
    def _check_beta(self) -> Self:
        if fault := explain_unusual_beta(self.loss, self.beta, self.runtime.typical_beta):
            raise ValueError(
                f"{fault}: each loss has its own scale;"
                f" give runtime.typical_beta={self.beta:g} if you mean it"
            )
        return self

    @model_validator(mode="after")
    def _check_sharding(self) -> Self:
        launch = self.runtime.launch
        if launch in SHARDED_WEIGHTS and self.adapter.kind == "qlora":
            raise ValueError(
                f"runtime.launch={launch} shards weights, and no test shows that the packed"
                " weights of adapter=qlora survive that. Use adapter=lora,"
                " or runtime.launch=ddp or zero2"
            )
        return self

    @model_validator(mode="after")
    def _check_loss_group(self) -> Self:
        """`loss_group` counts the rows that a loss couples: `runtime` must not change results."""
        coupled = couples_rows(self.trainer, self.loss)
        names, micro = ", ".join(self.loss), self.runtime.micro_batch
        if not coupled and self.loss_group is not None:
            raise ValueError(
                f"loss_group={self.loss_group} would be ignored: {names} treats each row separately"
            )
        if not coupled:
            return self
        if self.loss_group is None:
            raise ValueError(
                f"loss_group: {names} couples several rows; give their number, such as loss_group=8"
            )
        if micro != "auto" and (
            self.loss_group % micro if self.trainer == "kto" else micro != self.loss_group
        ):
            raise ValueError(
                f"runtime.micro_batch={micro}: {names} couples loss_group={self.loss_group} rows;"
                f" give loss_group={micro}, which is another experiment"
            )
        if self.trainer == "kto" and self.loss_group == 1:
            raise ValueError(
                "loss_group=1: kto estimates its KL from the other rows;"
                " give 2 or more, such as loss_group=8"
            )
        if self.batch % self.loss_group:
            raise ValueError(
                f"batch={self.batch} is not a multiple of loss_group={self.loss_group}: {names}"
                " couples that many rows, and an optimizer step would see only a part of them"
            )
        return self

    @property
    def low_rate_warning(self) -> str | None:
        """A warning about a learning rate too low to learn anything; None: it is not."""
        usual = self.runtime.typical_learning_rate
        if self.learning_rate / usual > 0.0999:  # a tenth itself is not too low
            return None
        return (
            f"learning_rate={self.learning_rate:g} is under a tenth of the usual rate ({usual:g}):"
            " expect little to change"
        )

    @property
    def sampling_warning(self) -> str | None:
        """A warning about how answers are sampled, where the trainer samples them."""
        return None

    def explain_few_steps(self, steps: int) -> str | None:
        """A warning where the warm-up takes at least twice its share of the steps, or None."""
        warmup_steps = ceil(self.warmup * steps)
        if not warmup_steps or warmup_steps < 2 * self.warmup * steps:
            return None
        return (
            f"too few steps ({steps}) for {self.knob}.warmup={self.warmup:g}: the warm-up takes"
            f" {warmup_steps} of them, so expect little to change. Give more pairs, a smaller"
            f" {self.knob}.batch (it is {self.batch}) or more {self.knob}.epochs"
        )

    @property
    def keeps_reference(self) -> bool:
        """Whether the trainer holds a fixed reference model in memory throughout."""
        return self.reference_logps == "online" and not self.args.get("sync_ref_model")

    @property
    def rehearsal_rows(self) -> int:
        """Demonstrations added to the pairs of each step."""
        return max(1, round(self.rehearsal.share * self.batch)) if self.rehearsal else 0

    def loss_group_per_process(self, world: int) -> int | None:
        """Rows of `loss_group` in one process.

        TRL averages kto's KL over all processes; other losses see the rows of one process.
        """
        return (
            self.loss_group // world
            if self.loss_group and self.trainer == "kto"
            else self.loss_group
        )

    def explain_misfit(self, gpus: int) -> str | None:
        """Why this cannot be trained on so many GPUs here; None: it can."""
        world = self.runtime.world_size(gpus)
        fault = self.runtime.explain_misfit(self.batch, gpus, self.knob)
        fault = fault or explain_attention(self.attention, self.dtype, gpus, self.knob)
        if fault := fault or explain_args(self.args, gpus, self.knob):
            return fault
        if world > 1 and not self.runtime.eval_when_distributed and self.guards.needs_own_metrics:
            return self._explain_unseen_guards(world)
        return self._explain_uneven_groups(self.loss_group, world) if self.loss_group else None

    def _explain_unseen_guards(self, world: int) -> str:
        knob = self.knob
        budgets = [
            f"{name}={value:g}"
            for name in ("kl_budget", "max_chosen_logp_drop")
            if (value := getattr(self.guards, name))
        ]
        return (
            f"{knob}.guards.{budgets[0] if budgets else 'stop_on=score'} is measured only where one"
            f" process trains alone, and here {world} train together.\n"
            f"  Give {knob}.runtime.eval_when_distributed=true, {knob}.runtime.processes=1,"
            f" or {knob}.guards.stop_on=loss, accuracy or margin of the dev pairs."
        )

    def _explain_uneven_groups(self, group: int, world: int) -> str | None:
        kto, micro, knob = self.trainer == "kto", self.runtime.micro_batch, self.knob
        if kto and (group % world or group // world < 2):
            return (
                f"{knob}.loss_group={group} does not divide evenly among {world} processes: kto"
                " couples that many rows over all of them, two or more in each.\n"
                f"  Give other {knob}.runtime.processes, or a {knob}.loss_group that is a multiple"
                f" of {2 * world}, which is another experiment."
            )
        if kto and micro not in ("auto", group // world):
            return (
                f"{knob}.runtime.micro_batch={micro}: kto couples {knob}.loss_group={group} rows"
                f" over all {world} processes, which is {group // world} in each.\n"
                f"  Give {knob}.runtime.micro_batch=auto."
            )
        if not kto and self.batch % (group * world):
            return (
                f"{knob}.batch={self.batch} does not divide evenly among {world} processes of"
                f" {knob}.loss_group={group} rows.\n"
                f"  Give a batch that is a multiple of {group * world},"
                f" or other {knob}.runtime.processes."
            )
        return None
