"""evaluate: reads every model's evaluation, does the statistics and writes the report.

It loads no model. A model without scores, answers or log-probabilities is named under `missing`;
the rest of the report is still written.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import (
    ChatSet,
    EvalArtifacts,
    Model,
    Pairs,
    Prompts,
    Report,
    Verdicts,
    write_json,
    write_table,
    write_text,
)
from pipeline.config import CONTROL, ReportConfig
from pipeline.data.label_files import Label, read_votes
from pipeline.errors import UserError, suggest
from pipeline.report.analysis import aggregate, sanity_checks
from pipeline.report.analysis.ancestors import list_members, read_ancestors
from pipeline.report.analysis.annotators import HumanResults, collect_human_results
from pipeline.report.analysis.benchmarks import (
    apply_retention,
    check_retention,
    describe_benchmarks,
    list_unavailable,
)
from pipeline.report.analysis.changes import describe_changes
from pipeline.report.analysis.chats import (
    QuestionSet,
    describe_chat,
    list_watched_differences,
    list_watched_figures,
    read_question_set,
)
from pipeline.report.analysis.cost import describe_cost
from pipeline.report.analysis.distributions import describe_distributions
from pipeline.report.analysis.effort import describe_effort
from pipeline.report.analysis.eval_results import SFT, EvalResult, read_eval
from pipeline.report.analysis.expected import compare_expected
from pipeline.report.analysis.funnel import read_funnel
from pipeline.report.analysis.gates import read_gates
from pipeline.report.analysis.judges import judge_duels
from pipeline.report.analysis.multiple_testing import correct_families
from pipeline.report.analysis.panels import (
    Ensemble,
    combine_judges,
    describe_ensembles,
    list_ensembles,
)
from pipeline.report.analysis.replicates import (
    average_over_seeds,
    describe_seeds,
    note_single_seed,
    widen_differences,
)
from pipeline.report.analysis.setup import describe_setup
from pipeline.report.analysis.slices import describe_slices
from pipeline.report.analysis.verdict import VerdictBasis, reach_verdict
from pipeline.report.render.answer_files import write_answers
from pipeline.report.render.answers import tabulate_answers
from pipeline.report.render.markdown import render_markdown
from pipeline.report.render.page import render_page


def run(
    cfg: ReportConfig,
    out: Path,
    *,
    prompts: Prompts,
    evals: dict[str, EvalArtifacts],
    chosen: Model,
    pairs: list[Pairs] | None = None,
    duels: dict[str, dict[str, dict[str, Verdicts]]] | None = None,
    chats: dict[str, ChatSet] | None = None,
    replicates: dict[str, EvalArtifacts] | None = None,
) -> Report:
    asked = prompts.read()
    results, repeated = (
        [
            read_eval(name, evaluation, frozenset(asked["prompt_id"]), cfg.scorer)
            for name, evaluation in group.items()
        ]
        for group in (evals, replicates or {})
    )
    check_scorer(cfg.scorer, results)
    sets = [read_question_set(name, chat) for name, chat in (chats or {}).items()]
    found = collect_findings(
        cfg,
        results,
        describe_benchmarks(evals, aggregate.bootstrap_config(cfg)),
        duels or {},
        sets,
        list_ensembles(read_ancestors(out), prompts.path.name),
        repeated,
    )
    report = assemble_report(cfg, out, prompts, find_name(chosen, results), found, pairs or [])
    if effort := describe_effort(out):
        report["effort"] = effort
    answers = tabulate_answers(results, asked)

    write_table(out / "answers.parquet", answers)
    verdicts = aggregate.tabulate_verdicts(found.duels)
    write_table(out / "verdicts.parquet", verdicts)
    write_json(out / "report.json", report)
    for of in sets:
        write_answers(out / "answers" / of.name, of)
    write_text(out / "report.md", render_markdown(report))
    write_text(
        out / "report.html",
        render_page(report, answers.filter(pl.col("model") != CONTROL), verdicts),
    )
    return Report(out)


@dataclass(frozen=True)
class Findings:
    """What was read, in the order of the plan. `replicates`: the last round by other seeds."""

    results: list[EvalResult]
    replicates: list[EvalResult]
    duels: list[aggregate.ModelDuel]
    published: list[dict[str, Any]]
    annotators: HumanResults
    panels: list[dict[str, Any]]
    chats: dict[str, tuple[dict[str, Any], HumanResults]]

    @property
    def chat_reports(self) -> dict[str, dict[str, Any]]:
        return {name: report for name, (report, _) in self.chats.items()}

    def list_watched(self, differences: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What evaluate.retention may name: of the test prompts, and of the question sets."""
        return [*differences, *list_watched_differences(self.chat_reports)]

    def list_missing(self) -> list[dict[str, str]]:
        own = [
            *aggregate.list_missing([*self.results, *self.replicates]),
            *list_unavailable(self.published),
            *self.annotators.missing,
        ]
        return [*own, *(row for _, said in self.chats.values() for row in said.missing)]


def collect_findings(
    cfg: ReportConfig,
    results: list[EvalResult],
    published: list[dict[str, Any]],
    duels: dict[str, dict[str, dict[str, Verdicts]]],
    sets: list[QuestionSet],
    ensembles: list[Ensemble],
    replicates: list[EvalResult],
) -> Findings:
    """Annotators' verdicts go to the set of questions that they are about.

    The others go to the evaluation's prompts.
    """
    draw, names = aggregate.bootstrap_config(cfg), aggregate.list_scorers(results, cfg.scorer)
    votes = {
        name: read_votes(path, f"evaluate.labels.{name}")
        for name, path in sorted(cfg.labels.items())
    }
    by_scores = aggregate.score_duels(results, names, draw)
    judged = judge_duels(duels, results, draw)
    combined, panels = combine_judges(judged, cfg.panel, draw)
    panels += describe_ensembles(ensembles, results, by_scores, draw)
    judges = [*by_scores, *judged, *combined]
    others = {name: exclude_votes(given, sets) for name, given in votes.items()}
    annotators = collect_human_results(results, others, judges, draw)
    reports = {}
    for of in sets:
        own = {name: select_votes(of, given) for name, given in votes.items()}
        reports[of.name] = describe_chat(of, own, draw, cfg.panel)
    contests = [*judges, *annotators.duels]
    return Findings(results, replicates, contests, published, annotators, panels, reports)


def assemble_report(
    cfg: ReportConfig,
    out: Path,
    prompts: Prompts,
    chosen: str | None,
    found: Findings,
    pairs: list[Pairs],
) -> dict[str, Any]:
    draw, asked = aggregate.bootstrap_config(cfg), last_turns(prompts)
    results, published = found.results, found.published
    unchanged = is_unchanged(chosen, results)
    scorers = (cfg.training, tuple(cfg.gold))
    members = list_members(read_ancestors(out), cfg.training)
    question = VerdictBasis(
        prompts.path.name, len(asked), cfg.scorer, cfg.level, chosen, *scorers, unchanged, members
    )
    names = aggregate.list_scorers(results, cfg.scorer)
    averaged = average_over_seeds(results, found.replicates)
    models = aggregate.describe_models(averaged, names, asked, draw)
    gaps = aggregate.describe_differences(averaged, names, draw)
    seeds = describe_seeds(results, found.replicates, names, draw)
    differences, contests = correct_families(
        widen_differences(gaps, results, found.replicates, draw),
        [aggregate.describe_duel(duel) for duel in found.duels],
        primary=(chosen, cfg.scorer),
    )
    gates = read_gates(out)
    verdict = reach_verdict(question, models, differences, gates[-1] if gates else None)
    verdict = note_single_seed(verdict, chosen, differences)
    retained = check_retention(cfg.retention, question, published, found.list_watched(differences))
    figures = [*models, *list_watched_figures(found.chat_reports)]
    return {
        "evaluation": asdict(question),
        "setup": describe_setup(out),
        "verdict": apply_retention(verdict, retained, chosen),
        "models": models,
        "differences": differences,
        **({"replicates": seeds} if seeds else {}),
        "duels": contests,
        "changes": describe_changes(results, chosen, asked, draw),
        "distributions": describe_distributions(results, chosen, cfg.scorer),
        "slices": describe_slices(cfg.slices, prompts.read_columns(), averaged, cfg.scorer, draw),
        "control": sanity_checks.check_control(question, differences, contests),
        "proxy": sanity_checks.check_proxy(question, models, differences),
        "ceiling": sanity_checks.check_ceiling(question, differences),
        "benchmarks": published,
        "retention": retained,
        "expected": compare_expected(cfg.expect, question, figures, published),
        "gates": gates,
        "panels": found.panels,
        "annotators": [
            *found.annotators.agreement,
            *(row for _, said in found.chats.values() for row in said.agreement),
        ],
        "chats": found.chat_reports,
        "funnel": read_funnel(out, pairs),
        "training": aggregate.describe_training(results),
        "cost": describe_cost(out),
        "missing": found.list_missing(),
    }


def is_unchanged(chosen: str | None, results: list[EvalResult]) -> bool:
    """Whether the chosen model's training moved no weight; the last round's where SFT is chosen."""
    rounds = [model.name for model in aggregate.select_rounds(results)]
    names = rounds[-1:] if chosen == SFT else [chosen]
    return any(model.is_unchanged for model in results if model.name in names)


def select_votes(of: QuestionSet, votes: list[Label]) -> list[Label]:
    return [vote for vote in votes if of.contains(vote)]


def exclude_votes(votes: list[Label], sets: list[QuestionSet]) -> list[Label]:
    """Votes about no set of questions: about the evaluation's prompts, or about nothing."""
    return [vote for vote in votes if not any(of.contains(vote) for of in sets)]


def check_scorer(scorer: str, results: list[EvalResult]) -> None:
    known = sorted({name for model in results for name in model.scores})
    if known and scorer not in known:
        raise UserError(
            f"evaluate.scorer={scorer} has scored no answer of this evaluation."
            f" {suggest(scorer, known)}"
        )


def last_turns(prompts: Prompts) -> dict[str, str]:
    """The last turn of each prompt, which the answer is to."""
    return {
        key: messages[-1]["content"]
        for key, messages in prompts.read().select("prompt_id", "prompt").iter_rows()
    }


def find_name(chosen: Model, results: list[EvalResult]) -> str | None:
    return next((model.name for model in results if model.path == chosen.path), None)
