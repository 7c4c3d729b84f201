"""How many prompts, pairs and training rows a plan will have: at most, before they are built."""

from pipeline.artifacts import FUNNEL_FILE, read_object
from pipeline.config import OnlineTraining, PairRound, SampleRequest
from pipeline.errors import UserError
from pipeline.preflight.rows import count_given_prompts
from pipeline.status import RunPlan
from pipeline.step import Step


def count_training_rows(run_plan: RunPlan, step: Step, rows_per_pair: int) -> int | None:
    """The most pairs that `pair` may make, or their answers; filters and ties remove some."""
    total = 0
    for source in step.inputs["pairs"]:
        pairs = count_pairs_at_most(run_plan, source)
        takes_every_answer = source.config.unpaired_threshold is not None and rows_per_pair > 1
        if pairs is None or takes_every_answer:
            return None
        total += pairs * rows_per_pair
    return total


def count_online_rows(run_plan: RunPlan, cfg: OnlineTraining) -> int | None:
    """The most answers that online training samples in an epoch."""
    known = count_prompts_at_most(run_plan).get("train")
    prompts = cfg.request.per_round or known
    return None if prompts is None else cfg.count_prompts(prompts) * cfg.setting.n


def count_pairs_at_most(run_plan: RunPlan, source: Step) -> int | None:
    """The most pairs of a Step; None with offline rows, whose number is not known yet."""
    pool = source.inputs.get("pool", {}).values()
    sampled = [*source.inputs.get("samples", []), *(step for steps in pool for step in steps)]
    configs = [step.config for step in sampled]
    requests = [config for config in configs if isinstance(config, SampleRequest)]
    prompts = requests[0].per_round if requests else None
    prompts = prompts or count_prompts_at_most(run_plan).get("train")
    if prompts is None or source.stage != "pair" or "offline" in source.inputs:
        return None
    assert isinstance(source.config, PairRound)
    pairs = prompts * source.config.max_pairs_per_prompt
    if (budget := source.config.budget.at_most) is None:
        return pairs
    dev = source.config.dev
    return min(pairs, budget + max(dev.min, round(dev.share * pairs)))


def count_prompts_at_most(run_plan: RunPlan) -> dict[str, int]:
    """The prompts of each part: as published, or the most that the rows here may give."""
    published = count_published_prompts(run_plan)
    source = _find_prompts(run_plan)
    if published is not None or source is None:
        return published or {}
    return count_given_prompts(source)


def count_published_prompts(run_plan: RunPlan) -> dict[str, int] | None:
    """The prompts of each part; None while they are not built, or where their file is damaged."""
    source = _find_prompts(run_plan)
    if source is None:
        return None
    funnel = run_plan.folder(source) / FUNNEL_FILE
    try:
        return read_object(funnel, out=dict)["out"]
    except (FileNotFoundError, NotADirectoryError, UserError):
        return None


def _find_prompts(run_plan: RunPlan) -> Step | None:
    """The Step of the training prompts; None for until=sft with a checkpoint."""
    # The questions of chat benchmarks have labels.
    steps = [step for step in run_plan.steps if step.stage == "prompts" and not step.label]
    return steps[0] if steps else None
