"""The best pairs that the samples (and offline rows) hold, with every sample, prompt and pair
accounted for.

Joins are by id. Nothing here depends on the order of rows; ties between equal scores go by sample
id.
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline.artifacts import (
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
    token_checks,
)
from pipeline.pairing.candidates import join_candidates, read_samples, scan_metadata

if TYPE_CHECKING:
    from pipeline.backends.chat import Chat

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
    from pipeline.backends.chat import Chat

    work = Work(cfg, out, Chat(policy))
    if samples:
        work.take_samples(samples, scores or [], prompts)
    if offline:
        work.take_offline(offline, prior)
    work.judge()
    work.edit()
    work.publish()
    return Pairs(out)


class Work:
    """The rows on their way: proposals, what was dropped, and the prompts' and answers' own
    tokens, by id."""

    def __init__(self, cfg: PairRound, out: Path, chat: "Chat"):
        self.cfg, self.out, self.chat = cfg, out, chat
        self.pairs: list[pl.DataFrame] = []
        self.dropped: list[pl.DataFrame] = []
        self.prompts = pl.DataFrame(schema=PROMPTS)
        self.answers = pl.DataFrame(schema=ANSWERS)
        self.thumbs: list[pl.DataFrame] = []
        self.story: dict[str, Any] = {
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

    # ── what comes in ─────────────────────────────────────────────────────────────────────────────

    def take_samples(
        self, samples: list[Samples], scores: list[Scores], prompts: Prompts | None
    ) -> None:
        cfg, marked = self.cfg, pl.concat([each.read() for each in scores])
        waves = [scan_metadata(each, self.chat.only_bos) for each in samples]
        self.story["waves"] = [wave.height for wave in waves]
        drawn = pl.concat(waves)
        rows = join_candidates(drawn, marked, cfg.scorer)
        found = selection.propose_pairs(cfg, rows)
        self.story |= self._about_samples(rows, found)
        self.dropped += [found.dropped_samples, found.dropped_prompts]
        self._remember(samples, rows, found.pairs)
        pairs = found.pairs
        if isinstance(cfg.strategy, Demonstration):
            assert prompts is not None, "the plan gives a demonstration its prompts"
            pairs = self._demonstrated(cfg.strategy, pairs, prompts)
        signed = label_noise.add_signs(pairs, marked, cfg.scorer)
        self.pairs.append(signed.with_columns(reference=pl.lit(None, pl.Float64)))

    def _about_samples(self, rows: pl.DataFrame, found: selection.Proposal) -> dict[str, Any]:
        story = {
            "samples_in": rows.height,
            "dropped_samples": funnel.count_reasons(found.dropped_samples),
            "candidates": found.usable,
            "prompts_in": found.prompts.height,
            "dropped_prompts": funnel.count_reasons(found.dropped_prompts),
            "ties": selection.count_ties(self.cfg, found.prompts),
            "length_score_correlation": funnel.correlate_length(rows),
        }
        paired = found.pairs["prompt_id"].n_unique()
        lost = rows.height - found.usable - found.dropped_samples.height
        without = found.prompts.height - paired - found.dropped_prompts.height
        if lost or without:
            raise StageError(
                f"pair: {lost} samples and {without} prompts are unaccounted for: {story}"
            )
        return story

    def _remember(self, samples: list[Samples], rows: pl.DataFrame, pairs: pl.DataFrame) -> None:
        """The prompts and tokens of the proposals, and of every sample where thumbs are asked
        for; by id."""
        at = self.cfg.thumbs_at
        usable = rows.filter(pl.col("score").is_finite()) if at is not None else None
        ids = pl.concat(
            [
                pairs[f"{side}_id"]
                for side in ("chosen", "rejected")
                if f"{side}_id" in pairs.columns
            ]
        )
        wanted = usable["sample_id"] if usable is not None else ids.unique()
        full = pl.concat([read_samples(each, wanted) for each in samples])
        self.prompts = full.select(*PROMPTS).unique("prompt_id", keep="any").cast(PROMPTS)
        self.answers = full.select(*ANSWERS).cast(ANSWERS)
        if usable is not None:
            marked = full.join(
                usable.select("sample_id", label=pl.col("score") >= at), on="sample_id"
            )
            told = marked.with_columns(completion=split.to_message("completion")).sort(
                "prompt_id", "sample_id"
            )
            self.thumbs.append(told.select(*split.UNPAIRED_COLUMNS))

    def _demonstrated(
        self, strategy: Demonstration, pairs: pl.DataFrame, prompts: Prompts
    ) -> pl.DataFrame:
        """The prompt's own answer as chosen, in the policy's tokens; a prompt without one makes
        no pair."""
        asked = pairs.select("prompt_id").join(
            self.prompts, on="prompt_id", how="left", maintain_order="left"
        )
        gold = demonstrations.read_gold(strategy.column, asked, prompts)
        told = demonstrations.encode_gold(
            gold, partial(self.chat.answer, kwargs=self.cfg.template_kwargs)
        )
        bare = gold.filter(pl.col("text").is_null()).select(
            "prompt_id", reason=pl.lit(demonstrations.NO_DEMONSTRATION)
        )
        self.dropped.append(selection.to_dropped("prompt", bare))
        self.story["dropped_prompts"] |= funnel.count_reasons(bare)
        self._answer(told.select(sample_id="chosen_id", token_ids="token_ids"))
        return demonstrations.pair_with_gold(pairs, told)

    def take_offline(self, offline: Pairs, prior: Logps | None) -> None:
        rows = mix.select_block(self.cfg, offline)
        self.pairs.append(
            label_noise.add_empty_signs(mix.to_filter_columns(rows, prior)).select(
                *JUDGED_WITH_SIGNS
            )
        )
        known = self.prompts.select("prompt_id")
        fresh = (
            rows.select(*PROMPTS)
            .unique("prompt_id", keep="any")
            .join(known, on="prompt_id", how="anti")
        )
        self.prompts = pl.concat([self.prompts, fresh.cast(PROMPTS)])
        for side in ("chosen", "rejected"):
            self._answer(
                rows.select(
                    pl.col(f"{side}_id").alias("sample_id"),
                    pl.col(f"{side}_token_ids").alias("token_ids"),
                )
            )
        self.thumbs.append(mix.select_unpaired(self.cfg, offline).select(*split.UNPAIRED_COLUMNS))

    def _answer(self, more: pl.DataFrame) -> None:
        self.answers = pl.concat([self.answers, more.cast(ANSWERS)]).unique(
            "sample_id", keep="first", maintain_order=True
        )

    # ── what is left of it ────────────────────────────────────────────────────────────────────────

    def judge(self) -> None:
        """The filters of pairs, the same for all origins; then the mix."""
        cfg = self.cfg
        pairs = selection.sort_pairs(
            pl.concat(
                [each.select(*JUDGED_WITH_SIGNS) for each in self.pairs], how="vertical_relaxed"
            )
        )
        self.story["pairs_in"] = pairs.height
        if cfg.filters.repeats or cfg.filters.near:
            words = pl.col("prompt").list.eval(pl.element().struct.field("content")).list.join("\n")
            texts = self.prompts.select("prompt_id", prompt_text=words)
            pairs = pairs.join(texts, on="prompt_id", how="left", maintain_order="left")
        kept, dropped = selection.filter_pairs(cfg, pairs)
        self.dropped.append(dropped)
        kept, surplus = mix.mix_pairs(cfg, kept)
        self.dropped.append(surplus)
        self.kept = kept

    def edit(self) -> None:
        if self.cfg.edits is None:
            return
        path = Path(self.cfg.edits)
        lines = read_jsonl(
            path,
            lambda row: edits.find_fault(row) or find_unwritable(edits.keep_typed(row)),
            "skip",
            "pair.edits",
        )
        edits.check_lines(self.cfg.edits, lines.bad)
        asked = dict(self.prompts.select("prompt_id", "prompt").iter_rows())

        def tokenise(prompt_id: str, text: str) -> list[int]:
            return self.chat.answer(asked[prompt_id], text, self.cfg.template_kwargs)

        self.kept, dropped, made = edits.apply_edits(self.kept, lines.rows, tokenise)
        self.dropped.append(dropped)
        new = {"sample_id": list(made), "token_ids": list(made.values())}
        self._answer(pl.DataFrame(new, schema=ANSWERS))

    # ── what goes out ─────────────────────────────────────────────────────────────────────────────

    def publish(self) -> None:
        dropped = pl.concat(self.dropped).sort(
            "prompt_id", "sample_id", "chosen_id", "rejected_id", nulls_last=True
        )
        pairs = split.build_pairs(self.kept, self.prompts, self.answers)
        train, dev = split.split_pairs(self.cfg, pairs)
        thumbs = self._thumbs(pairs)
        self._account(dropped, train, dev, thumbs)
        write_table(self.out / "dropped.parquet", dropped)
        write_json(self.out / "funnel.json", self.story)
        if not pairs.height and not any(each.height for each in self.thumbs):
            raise UserError(funnel.no_pairs_error(self.story, self.out / "dropped.parquet"))
        token_checks.check_pairs(self.cfg, pairs, self.chat)
        write_table(self.out / "train.parquet", train)
        write_table(self.out / "dev.parquet", dev)
        write_table(self.out / "unpaired.parquet", thumbs)
        write_text(self.out / "README.md", funnel.render_card(self.story))
        for line in funnel.format_lines(self.story):
            print("│", line, file=sys.stderr, flush=True)

    def _thumbs(self, pairs: pl.DataFrame) -> pl.DataFrame:
        scored = self.cfg.thumbs_at is not None
        parts = [*([] if scored else [split.to_unpaired(pairs)]), *self.thumbs]
        return (
            pl.concat(parts).unique(["sample_id", "label"]).sort("prompt_id", "sample_id", "label")
        )

    def _account(
        self, dropped: pl.DataFrame, train: pl.DataFrame, dev: pl.DataFrame, thumbs: pl.DataFrame
    ) -> None:
        """Rows in = rows out + rows dropped with a reason."""
        gone = dropped.filter(pl.col("kind") == "pair")
        out = train.height + dev.height
        up = int(thumbs["label"].sum())
        self.story |= {
            "dropped_pairs": funnel.count_reasons(gone),
            "pairs": out,
            "train": train.height,
            "dev": dev.height,
            "filters": funnel.count_by_filter(self.cfg, dropped),
            **funnel.describe_pairs(self.kept),
            "noise": label_noise.estimate_noise(self.kept),
            "unpaired": {"up": up, "down": thumbs.height - up},
            "examples": funnel.pick_examples(self.kept, self.prompts),
        }
        if lost := self.story["pairs_in"] - out - gone.height:
            raise StageError(
                f"pair: {lost} of {self.story['pairs_in']} proposed pairs are unaccounted for."
            )


JUDGED_WITH_SIGNS = [
    *selection.FILTER_COLUMNS,
    "disagreement",
    "flip_rate",
    "annotators",
    "reference",
]
