"""The best pairs of the samples and offline rows. Every sample, prompt and pair is accounted for.

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
from pipeline.config import Demonstration, PairRound
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
    split,
    strength,
    token_checks,
)
from pipeline.pairing.candidates import join_candidates, read_samples, scan_metadata
from pipeline.progress import print_note

if TYPE_CHECKING:
    from pipeline.backends.chat import ModelTokenizer

ANSWERS = pl.Schema([("sample_id", pl.String), ("token_ids", pl.List(pl.Int64))])
MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
PROMPTS = pl.Schema(
    [("prompt_id", pl.String), ("prompt", MESSAGES), ("prompt_token_ids", pl.List(pl.Int64))]
)


def run(
    cfg: PairRound,
    out: Path,
    *,
    policy: Model,
    samples: list[Samples] | None = None,
    scores: list[Scores] | None = None,
    prompts: Prompts | None = None,
    offline: Pairs | None = None,
    prior: Logps | None = None,
) -> Pairs:
    from pipeline.backends.chat import ModelTokenizer

    builder = PairBuilder(cfg, out, ModelTokenizer(policy))
    if samples:
        builder.add_samples(samples, scores or [], prompts)
    builder.prompt_columns = prompts.read_columns() if prompts and cfg.budget.balance else {}
    if offline:
        builder.add_offline(offline, prior)
    builder.filter()
    builder.apply_edits()
    builder.publish()
    return Pairs(out)


class PairBuilder:
    """Proposals on their way, what was dropped, and the tokens of prompts and answers by id."""

    def __init__(self, cfg: PairRound, out: Path, chat: "ModelTokenizer"):
        self.cfg, self.out, self.chat = cfg, out, chat
        self.pairs: list[pl.DataFrame] = []
        self.dropped: list[pl.DataFrame] = []
        self.prompts = pl.DataFrame(schema=PROMPTS)
        self.answers = pl.DataFrame(schema=ANSWERS)
        self.unpaired: list[pl.DataFrame] = []
        self.prompt_columns: dict[str, dict[str, Any]] = {}
        self.summary: dict[str, Any] = {
            "strategy": cfg.strategy.kind,
            "scorer": cfg.scorer,
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
        self, samples: list[Samples], scores: list[Scores], prompts: Prompts | None
    ) -> None:
        cfg, table = self.cfg, pl.concat([each.read() for each in scores])
        waves = [scan_metadata(each, self.chat.leading_bos) for each in samples]
        self.summary["waves"] = [wave.height for wave in waves]
        rows = join_candidates(pl.concat(waves), table, cfg.scorer)
        proposal = selection.propose_pairs(cfg, rows)
        self.summary |= self._summarize_samples(rows, proposal)
        self.dropped += [proposal.dropped_samples, proposal.dropped_prompts]
        self._read_tokens(samples, rows, proposal.pairs)
        pairs = proposal.pairs
        if isinstance(cfg.strategy, Demonstration):
            assert prompts is not None, "the plan gives a demonstration its prompts"
            pairs = self._add_demonstrations(cfg.strategy, pairs, prompts)
        signed = label_noise.add_signs(pairs, table, cfg.scorer)
        unknown = (pl.lit(None, pl.Float64).alias(name) for name in ("reference", "weight"))
        self.pairs.append(signed.with_columns(unknown))

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

        self.kept, dropped, tokens = edits.apply_edits(knob, self.kept, lines.rows, tokenise)
        self.dropped.append(dropped)
        new = {"sample_id": list(tokens), "token_ids": list(tokens.values())}
        self._add_answers(pl.DataFrame(new, schema=ANSWERS))

    # ── output ───────────────────────────────────────────────────────────────────────────────────

    def publish(self) -> None:
        self.kept = strength.add_strength(self.cfg, self.kept)
        pairs = split.build_pairs(self.kept, self.prompts, self.answers)
        train, dev = split.split_pairs(self.cfg, pairs)
        if self.cfg.budget.at_most is not None:
            train, surplus = split.spend_budget(self.cfg, train, self.prompt_columns)
            beyond = surplus.with_columns(reason=pl.lit(OVER_BUDGET))
            self.dropped.append(selection.to_dropped("pair", beyond))
            pairs = pl.concat([train, dev])
            self.kept = self.kept.join(pairs, on=PAIR_IDS, how="semi", maintain_order="left")
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
        write_table(self.out / "train.parquet", train)
        write_table(self.out / "dev.parquet", dev)
        write_table(self.out / "unpaired.parquet", unpaired)
        write_text(self.out / "README.md", funnel.render_card(self.summary))
        for line in funnel.format_lines(self.summary):
            print_note(line)

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
        pairs_in = self.summary["pairs_in"]
        if lost := pairs_in - out - gone.height:
            raise StageError(f"pair: {lost} of {pairs_in} proposed pairs are unaccounted for.")


PAIR_IDS = ["prompt_id", "chosen_id", "rejected_id"]
OVER_BUDGET = "over the budget"
COLUMNS_WITH_SIGNS = [*selection.FILTER_COLUMNS, *label_noise.SIGNS, "reference", "weight"]
