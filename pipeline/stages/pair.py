"""Pairs of the samples of all sources, and offline rows. Every row is accounted for.

Joins are by id. Nothing here depends on the order of rows; ties between equal scores go by sample
id.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline.artifacts import (
    DROPPED_FILE,
    FUNNEL_FILE,
    Logps,
    Model,
    Pairs,
    Prompts,
    Samples,
    Scores,
    write_json,
    write_table,
    write_text,
)
from pipeline.config import POLICY, Demonstration, PairRound
from pipeline.data.columns import MESSAGES
from pipeline.data.drop_log import count_reasons
from pipeline.data.jsonl import find_unwritable, read_jsonl
from pipeline.errors import StageError, UserError
from pipeline.pairing import (
    demonstrations,
    edits,
    funnel,
    label_noise,
    mix,
    selection,
    sources,
    split,
    step_pairs,
    strength,
    token_checks,
)
from pipeline.pairing.candidates import join_candidates, read_samples
from pipeline.progress import print_note

if TYPE_CHECKING:
    from pipeline.backends.chat import ModelTokenizer

ANSWERS = pl.Schema([("sample_id", pl.String), ("token_ids", pl.List(pl.Int64))])
PROMPTS = pl.Schema(
    [("prompt_id", pl.String), ("prompt", MESSAGES), ("prompt_token_ids", pl.List(pl.Int64))]
)


def run(
    cfg: PairRound,
    out: Path,
    *,
    policy: Model,
    samples: list[Samples] | None = None,
    pool: dict[str, list[Samples]] | None = None,
    scores: list[Scores] | None = None,
    prompts: Prompts | None = None,
    offline: Pairs | None = None,
    prior: Logps | None = None,
    pool_logps: list[Logps] | None = None,
    earlier: list[Pairs] | None = None,
    steps: Prompts | None = None,
) -> Pairs:
    """`pool`: answers of other sources than the policy, in its tokens.

    `prior` and `pool_logps` are under SFT, of offline rows and of the pool's answers. `earlier`:
    the pairs of the rounds before, where a prompt has a budget over all rounds. `steps`: wrong
    steps of solutions; then `samples` are continuations from before them.
    """
    from pipeline.backends.chat import ModelTokenizer

    builder = PairBuilder(cfg, out, ModelTokenizer(policy), has_pool=bool(pool))
    if steps:
        samples, scores, builder.summary["steps"] = step_pairs.write_candidates(
            cfg, out / "scratch" / "steps", builder.chat, steps, samples or [], scores or []
        )
    if samples or pool:
        answers = {**(pool or {}), POLICY: samples or []}  # the order of the scores
        builder.add_samples(answers, scores or [], prompts, pool_logps or [])
    builder.prompt_columns = prompts.read_columns() if prompts and cfg.budget.balance else {}
    if offline:
        builder.add_offline(offline, prior)
    builder.filter()
    builder.apply_edits()
    builder.publish(earlier or [])
    return Pairs(out)


class PairBuilder:
    """Proposals on their way, what was dropped, and the tokens of prompts and answers by id."""

    def __init__(self, cfg: PairRound, out: Path, chat: "ModelTokenizer", has_pool: bool = False):
        self.cfg, self.out, self.chat, self.has_pool = cfg, out, chat, has_pool
        self.pairs: list[pl.DataFrame] = []
        self.dropped: list[pl.DataFrame] = []
        self.prompts = pl.DataFrame(schema=PROMPTS)
        self.answers = pl.DataFrame(schema=ANSWERS)
        self.unpaired: list[pl.DataFrame] = []
        self.prompt_columns: dict[str, dict[str, Any]] = {}
        self.summary: dict[str, Any] = {
            "strategy": cfg.strategy.kind,
            "scorer": cfg.scorer if cfg.scored else None,
            "samples_in": 0,
            "waves": [],
            "dropped_samples": {},
            "candidates": 0,
            "prompts_in": 0,
            "dropped_prompts": {},
            "ties": {"prompts": 0, "all_easy": 0, "all_hard": 0},
            "length_score_correlation": None,
        }

    # ── input ────────────────────────────────────────────────────────────────────────────────────

    def add_samples(
        self,
        answers: dict[str, list[Samples]],
        scores: list[Scores],
        prompts: Prompts | None,
        pool_logps: list[Logps],
    ) -> None:
        cfg = self.cfg
        table = pl.concat([each.read() for each in scores]) if cfg.scored else None
        self.summary["waves"], metadata = sources.scan_sources(answers, self.chat.leading_bos)
        candidates = join_candidates(metadata, table, cfg.scorer)
        rows, proposal = candidates.rows, selection.propose_pairs(cfg, candidates)
        self.summary |= self._summarize_samples(rows, proposal)
        if self.has_pool:
            nats = sources.read_nats(pool_logps)
            self.summary["sources"] = sources.count_samples(rows, nats)
        self.dropped += [proposal.dropped_samples, proposal.dropped_prompts]
        self._read_tokens(
            [each for some in answers.values() for each in some], rows, proposal.pairs
        )
        pairs = proposal.pairs
        if isinstance(cfg.strategy, Demonstration):
            assert prompts is not None, "the plan gives a demonstration its prompts"
            pairs = self._add_demonstrations(cfg.strategy, pairs, prompts)
        if table is None:
            signed = label_noise.add_empty_signs(pairs)
        else:
            signed = label_noise.add_signs(pairs, table, cfg.scorer)
        known = sources.add_reference(signed, pool_logps)
        self.pairs.append(known.with_columns(weight=pl.lit(None, pl.Float64)))

    def _summarize_samples(
        self, rows: pl.DataFrame, proposal: selection.Proposal
    ) -> dict[str, Any]:
        summary = {
            "samples_in": rows.height,
            "dropped_samples": count_reasons(proposal.dropped_samples),
            "candidates": proposal.usable,
            "prompts_in": proposal.prompts.height,
            "dropped_prompts": count_reasons(proposal.dropped_prompts),
            "ties": selection.count_ties(self.cfg, proposal.prompts),
            "length_score_correlation": funnel.correlate_length(rows),
        }
        paired = proposal.pairs["prompt_id"].n_unique()
        lost_samples = rows.height - proposal.usable - proposal.dropped_samples.height
        lost_prompts = proposal.prompts.height - paired - proposal.dropped_prompts.height
        if lost_samples or lost_prompts:
            raise StageError(
                f"pair: {lost_samples} samples and {lost_prompts} prompts are unaccounted for:"
                f" {summary}"
            )
        return summary

    def _read_tokens(self, samples: list[Samples], rows: pl.DataFrame, pairs: pl.DataFrame) -> None:
        """Reads the prompts and tokens of the proposals by id.

        With a threshold for unpaired answers those of every scored sample.
        """
        threshold = self.cfg.unpaired_threshold
        usable = rows.filter(pl.col("score").is_finite()) if threshold is not None else None
        if usable is not None:
            wanted = usable["sample_id"]
        else:
            columns = [name for name in ("chosen_id", "rejected_id") if name in pairs.columns]
            wanted = pl.concat([pairs[name] for name in columns]).unique()
        full = pl.concat([read_samples(each, wanted) for each in samples])
        self.prompts = full.select(*PROMPTS).unique("prompt_id", keep="any").cast(PROMPTS)
        self.answers = full.select(*ANSWERS).cast(ANSWERS)
        if usable is not None:
            labels = usable.select("sample_id", label=pl.col("score") >= threshold)
            labelled = full.join(labels, on="sample_id")
            answers = labelled.with_columns(completion=split.to_message("completion"))
            answers = answers.sort("prompt_id", "sample_id")
            self.unpaired.append(answers.select(*split.UNPAIRED_COLUMNS))

    def _add_demonstrations(
        self, strategy: Demonstration, pairs: pl.DataFrame, prompts: Prompts
    ) -> pl.DataFrame:
        """Each prompt's own answer as chosen, in the policy's tokens.

        A prompt without one makes no pair.
        """
        asked = pairs.select("prompt_id").join(
            self.prompts, on="prompt_id", how="left", maintain_order="left"
        )
        gold = demonstrations.read_gold(strategy.column, asked, prompts)
        encode = partial(self.chat.encode_answer, kwargs=self.cfg.template_kwargs)
        encoded = demonstrations.encode_gold(gold, encode)
        reason = pl.lit(demonstrations.NO_DEMONSTRATION)
        without = gold.filter(pl.col("text").is_null()).select("prompt_id", reason=reason)
        self.dropped.append(selection.to_dropped("prompt", without))
        self.summary["dropped_prompts"] |= count_reasons(without)
        self._add_answers(encoded.select(sample_id="chosen_id", token_ids="token_ids"))
        return demonstrations.pair_with_gold(pairs, encoded)

    def add_offline(self, offline: Pairs, prior: Logps | None) -> None:
        rows = mix.select_block(self.cfg, offline)
        table = label_noise.add_empty_signs(mix.to_filter_columns(rows, prior))
        table = table.with_columns(rows["p_chosen"])
        self.pairs.append(table.select(*COLUMNS_WITH_SIGNS))
        known = self.prompts.select("prompt_id")
        offline_prompts = rows.select(*PROMPTS).unique("prompt_id", keep="any")
        new = offline_prompts.join(known, on="prompt_id", how="anti")
        self.prompts = pl.concat([self.prompts, new.cast(PROMPTS)])
        for side in ("chosen", "rejected"):
            name, ids = pl.col(f"{side}_id"), pl.col(f"{side}_token_ids")
            self._add_answers(rows.select(name.alias("sample_id"), ids.alias("token_ids")))
        unpaired = mix.select_unpaired(self.cfg, offline)
        self.unpaired.append(unpaired.select(*split.UNPAIRED_COLUMNS))

    def _add_answers(self, more: pl.DataFrame) -> None:
        answers = pl.concat([self.answers, more.cast(ANSWERS)])
        self.answers = answers.unique("sample_id", keep="first", maintain_order=True)

    # ── filters and edits ────────────────────────────────────────────────────────────────────────

    def filter(self) -> None:
        """Applies the filters of pairs, the same for all origins, and then the mix."""
        cfg = self.cfg
        tables = [each.select(*COLUMNS_WITH_SIGNS) for each in self.pairs]
        pairs = selection.sort_pairs(pl.concat(tables, how="vertical_relaxed"))
        self.summary["pairs_in"] = pairs.height
        if cfg.filters.repeats or cfg.filters.near_duplicate_threshold:
            words = pl.col("prompt").list.eval(pl.element().struct.field("content")).list.join("\n")
            texts = self.prompts.select("prompt_id", prompt_text=words)
            pairs = pairs.join(texts, on="prompt_id", how="left", maintain_order="left")
        kept, dropped = selection.filter_pairs(cfg, pairs)
        self.dropped.append(dropped)
        self.kept, surplus = mix.mix_pairs(cfg, kept)
        self.dropped.append(surplus)

    def apply_edits(self) -> None:
        if self.cfg.edits is None:
            return

        def find_fault(row: dict[str, Any]) -> str | None:
            return edits.find_fault(row) or find_unwritable(edits.keep_typed(row))

        knob = self.cfg.edits_knob
        lines = read_jsonl(Path(self.cfg.edits), find_fault, "skip", knob)
        edits.check_lines(knob, self.cfg.edits, lines.bad)
        asked = dict(self.prompts.select("prompt_id", "prompt").iter_rows())

        def tokenise(prompt_id: str, text: str) -> list[int]:
            return self.chat.encode_answer(asked[prompt_id], text, self.cfg.template_kwargs)

        before = self.kept.height
        self.kept, dropped, tokens = edits.apply_edits(
            knob, self.kept, lines.rows, tokenise, self.cfg.rank_edits
        )
        self.summary["pairs_in"] += self.kept.height + dropped.height - before
        self.dropped.append(dropped)
        new = {"sample_id": list(tokens), "token_ids": list(tokens.values())}
        self._add_answers(pl.DataFrame(new, schema=ANSWERS))

    # ── output ───────────────────────────────────────────────────────────────────────────────────

    def publish(self, earlier: list[Pairs]) -> None:
        self.kept = strength.add_strength(self.cfg, self.kept)
        pairs = split.build_pairs(self.kept, self.prompts, self.answers)
        train, dev = split.split_pairs(self.cfg, pairs)
        if self.cfg.budget.at_most is not None or self.cfg.budget.per_prompt is not None:
            train = self._spend_budget(train, earlier)
            pairs = pl.concat([train, dev])
            self.kept = self.kept.join(pairs, on=split.PAIR_IDS, how="semi", maintain_order="left")
        dropped = pl.concat(self.dropped).sort(
            "prompt_id", "sample_id", "chosen_id", "rejected_id", nulls_last=True
        )
        unpaired = self._collect_unpaired(pairs)
        self._summarize_pairs(dropped, train, dev, unpaired)
        write_table(self.out / DROPPED_FILE, dropped)
        write_json(self.out / FUNNEL_FILE, self.summary)
        if not pairs.height and not any(each.height for each in self.unpaired):
            raise UserError(funnel.no_pairs_error(self.summary, self.out / DROPPED_FILE))
        token_checks.check_pairs(self.cfg, pairs, self.chat)
        unnamed = () if self.has_pool else split.SOURCE_COLUMNS  # the policy's, as `origin` says
        write_table(self.out / "train.parquet", train.drop(unnamed))
        write_table(self.out / "dev.parquet", dev.drop(unnamed))
        write_table(self.out / "unpaired.parquet", unpaired)
        write_text(self.out / "README.md", funnel.render_card(self.summary))
        for line in funnel.format_lines(self.summary):
            print_note(line)

    def _spend_budget(self, train: pl.DataFrame, earlier: list[Pairs]) -> pl.DataFrame:
        """What is trained on: first within each prompt's budget, then within the round's."""
        train, crowded = split.cap_prompts(self.cfg, train, (one.read_train() for one in earlier))
        train, surplus = split.spend_budget(self.cfg, train, self.prompt_columns)
        for rows, reason in ((crowded, OVER_PROMPT_BUDGET), (surplus, OVER_BUDGET)):
            beyond = rows.with_columns(reason=pl.lit(reason))
            self.dropped.append(selection.to_dropped("pair", beyond))
        return train

    def _collect_unpaired(self, pairs: pl.DataFrame) -> pl.DataFrame:
        """The scored samples where a threshold labels them, else the sides of the pairs."""
        from_pairs = [] if self.cfg.unpaired_threshold is not None else [split.to_unpaired(pairs)]
        table = pl.concat([*from_pairs, *self.unpaired]).unique(["sample_id", "label"])
        return table.sort("prompt_id", "sample_id", "label")

    def _summarize_pairs(
        self, dropped: pl.DataFrame, train: pl.DataFrame, dev: pl.DataFrame, unpaired: pl.DataFrame
    ) -> None:
        """Rows in = rows out + rows dropped with a reason."""
        gone = dropped.filter(pl.col("kind") == "pair")
        out = train.height + dev.height
        up = int(unpaired["label"].sum())
        self.summary |= {
            "dropped_pairs": count_reasons(gone),
            "pairs": out,
            "train": train.height,
            "dev": dev.height,
            "filters": funnel.count_by_filter(self.cfg, dropped),
            **funnel.describe_pairs(self.kept),
            "noise": label_noise.estimate_noise(self.kept),
            "unpaired": {"up": up, "down": unpaired.height - up},
            "examples": funnel.pick_examples(self.kept, self.prompts),
        }
        if self.has_pool:
            counts = sources.count_sides(self.kept)
            known = self.summary["sources"]
            self.summary["sources"] = {
                source: {**sources.NO_PAIR, **known.get(source, {}), **counts.get(source, {})}
                for source in [*known, *(name for name in counts if name not in known)]
            }
        pairs_in = self.summary["pairs_in"]
        if lost := pairs_in - out - gone.height:
            raise StageError(f"pair: {lost} of {pairs_in} proposed pairs are unaccounted for.")


OVER_BUDGET = "over the budget"
OVER_PROMPT_BUDGET = "over the budget of its prompt"
COLUMNS_WITH_SIGNS = [*selection.FILTER_COLUMNS, *label_noise.SIGNS, "reference", "weight"]
