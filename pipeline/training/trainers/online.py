"""What GRPO and RLOO share: TRL samples to our token ids, scores by our scorers, and resumes.

The class is a mixin: inherit it before TRL's class. TRL renders no template, shuffles no prompts
and evaluates nothing. The guards generate and score answers to dev prompts, as for every trainer.
"""

from functools import partial
from typing import Any

import torch
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from pipeline.config import OnlineTraining
from pipeline.training.trainers.learning_rate import NonzeroWarmup

COLOCATED = "colocate"  # TRL's name of vLLM in the training's own processes


class OnlineTrainer(NonzeroWarmup):
    """Takes the columns `prompt, prompt_ids, prompt_id`, and `stop_ids` that end an answer.

    `kl_beta` weighs the KL to the reference; 0: there is none.
    """

    accelerator: Any
    args: Any
    callback_handler: Any
    control: Any
    generation_config: Any
    generation_kwargs: dict[str, Any]
    is_deepspeed_enabled: bool
    is_fsdp_enabled: bool
    model: Any
    state: Any
    temperature: float

    def __init__(
        self,
        *args: Any,
        ref_model: Any = None,
        stop_ids: list[int],
        kl_beta: float,
        **kwargs: Any,
    ):
        # TRL would load the reference from the policy's path, which is another model where an
        # adapter was merged or reference.model is another. With `beta` 0 it loads none.
        super().__init__(*args, **kwargs)
        self.beta = kl_beta
        self.ref_model = self._prepare_reference(ref_model) if ref_model is not None else None
        self.eos_token_ids = stop_ids
        if not self.args.use_vllm:
            self.generation_kwargs["eos_token_id"] = stop_ids
            self.generation_config.eos_token_id = stop_ids
            if self.is_fsdp_enabled:
                # Each forward pass gathers the weights of all processes, so one whose answers have
                # ended takes part until all have. transformers does this for ZeRO-3 unasked.
                self.model.generate = partial(self.model.generate, synced_gpus=True)

    def _prepare_reference(self, model: Any) -> Any:
        """As TRL prepares the one that it loads."""
        if self.args.disable_dropout:
            disable_dropout_in_model(model)
        cast = {"cast_lm_head_to_fp32": True} if _casts_head(self.args) else {}
        add_fused_lm_head(model, temperature=self.temperature, **cast)
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(model, self.accelerator)
        if self.is_fsdp_enabled:
            return prepare_fsdp(model, self.accelerator)
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL would write a card with paths and dates into every checkpoint."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._prompt_ids = [row["prompt_ids"] for row in inputs]
        trl: Any = super()
        batch: dict[str, Any] = trl._generate_and_score_completions(inputs)
        return batch

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """The ids that a pair's prompt would have: our template, tested for one BOS."""
        return self._prompt_ids, None, {}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The guards evaluate; TRL would sample and score dev answers once more for a loss."""
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, {})
        return {}


def _casts_head(args: Any) -> bool:
    return bool(getattr(args, "cast_lm_head_to_fp32", False))  # RLOO has no such argument


def sampling_arguments(cfg: OnlineTraining) -> dict[str, Any]:
    """TRL's arguments of what `sample` says, by the names that GRPO and RLOO share.

    A checkpoint is written only where new answers are due: TRL keeps none of those that it has.
    """
    drawn, every = cfg.setting, cfg.steps_between_samples
    return {
        "num_generations": drawn.n,
        "num_generations_eval": 1,  # TRL checks that it divides the batch; nothing is evaluated
        "temperature": drawn.temperature,
        "top_p": drawn.top_p,
        "min_p": drawn.min_p or None,
        "max_completion_length": cfg.request.limits.completion,
        "shuffle_dataset": False,  # TRL's order of a second epoch is lost when it resumes
        "save_steps": -(-cfg.runtime.save_every // every) * every,
        # As TRL has it for pairs, unless it is given.
        **({} if "disable_dropout" in cfg.args else {"disable_dropout": True}),
        "beta": 0.0,  # the trainer takes its own, so that TRL loads no reference
        **_vllm_arguments(cfg),
    }


def _vllm_arguments(cfg: OnlineTraining) -> dict[str, Any]:
    """TRL drives vLLM on GPUs alone; elsewhere transformers samples."""
    if not uses_vllm(cfg):
        return {"use_vllm": False}
    backend: Any = cfg.request.backend
    if cfg.args.get("vllm_mode", COLOCATED) != COLOCATED:
        return {"use_vllm": True}
    limits = cfg.request.limits
    return {
        "use_vllm": True,
        "vllm_mode": COLOCATED,
        "vllm_max_model_length": limits.prompt + limits.completion,
        "vllm_tensor_parallel_size": backend.runtime.tensor_parallel,
    }


def uses_vllm(cfg: OnlineTraining) -> bool:
    return cfg.request.backend.kind == "vllm" and torch.cuda.is_available()
