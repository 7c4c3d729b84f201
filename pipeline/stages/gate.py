"""Points to the best model so far, by the answers of SFT and every round to the dev prompts.

The next round starts from it. A later model replaces the best so far when it stays within the KL
budget and gains more than `min_gain` over it, prompt by prompt. The pointer holds its target's
content hash, so a rebuilt target makes the pointer's users stale.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import MANIFEST_FILE, MODEL_FILE, EvalArtifacts, Model, write_json
from pipeline.config import ANSWER, GateConfig
from pipeline.errors import StageError, UserError
from pipeline.hashing import hash_content
from pipeline.report.analysis.eval_results import SFT, EvalResult, read_eval


@dataclass(frozen=True)
class Candidate:
    name: str
    means: dict[str, float]  # by prompt
    kl: float | None


def run(cfg: GateConfig, out: Path, *, evals: dict[str, EvalArtifacts]) -> Model:
    candidates = [read_candidate(cfg, name, evaluation) for name, evaluation in evals.items()]
    best, rows = choose_best(cfg, candidates)
    target = evals[best.name]["model"]
    manifest = json.loads((target.path / MANIFEST_FILE).read_text())
    record = {
        "target": f"{target.path.parent.name}/{target.path.name}",
        "content": hash_content(manifest),
    }
    write_json(out / "gate.json", {"scorer": cfg.scorer, "chosen": best.name, "candidates": rows})
    write_json(out / MODEL_FILE, record)
    return target


def read_candidate(cfg: GateConfig, name: str, evaluation: EvalArtifacts) -> Candidate:
    asked = frozenset(evaluation["samples"].read(ANSWER)["prompt_id"])
    results: EvalResult = read_eval(name, evaluation, asked, cfg.scorer)
    if not (marks := results.scores.get(cfg.scorer)) or not marks.means:
        raise StageError(
            f"gate: no answer of {name} to a dev prompt has a score of {cfg.scorer},"
            " so it cannot be compared."
        )
    drift = [*results.kl.values()]
    kl = sum(drift) / len(drift) if drift else None
    if name == SFT:
        kl = 0.0
    if kl is None and cfg.kl_budget is not None:
        raise UserError(
            f"gate.kl_budget={cfg.kl_budget:g}: it is not known how far {name} moved from sft:"
            " its evaluation draws nothing for the KL.\n"
            "  Leave evaluate.sample its setting kl (no ~setting@evaluate.sample.settings.kl), or"
            " give gate.kl_budget=null."
        )
    return Candidate(name, marks.means, kl)


def choose_best(
    cfg: GateConfig, candidates: list[Candidate]
) -> tuple[Candidate, list[dict[str, Any]]]:
    """The best of all in their order; for each what it was compared with, and the outcome."""
    best, rows = candidates[0], [format_row(candidates[0], None, None, "begins")]
    for later in candidates[1:]:
        gain = compute_gain(later, best)
        outcome = decide(cfg, later, gain)
        rows.append(format_row(later, best, gain, outcome))
        best = later if outcome == "better" else best
    return best, rows


def decide(cfg: GateConfig, later: Candidate, gain: float) -> str:
    if cfg.kl_budget is not None and later.kl is not None and later.kl > cfg.kl_budget:
        return "too far"
    return "better" if gain > cfg.min_gain else "not better"


def compute_gain(later: Candidate, best: Candidate) -> float:
    common = sorted(later.means.keys() & best.means.keys())
    if not common:
        raise StageError(
            f"gate: {later.name} and {best.name} have no dev prompt in common"
            " that both have a score for."
        )
    return sum(later.means[key] - best.means[key] for key in common) / len(common)


def format_row(
    candidate: Candidate, against: Candidate | None, gain: float | None, outcome: str
) -> dict[str, Any]:
    return {
        "model": candidate.name,
        "mean": sum(candidate.means.values()) / len(candidate.means),
        "n": len(candidate.means),
        "kl": candidate.kl,
        "against": against.name if against else None,
        "gain": gain,
        "outcome": outcome,
    }
