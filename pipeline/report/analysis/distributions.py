"""How scores and lengths lie, before and after: counts of prompts between common edges. A mean hides a second hump."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.report.analysis.aggregate import NOT_ASKED
from pipeline.report.analysis.eval_results import SFT, EvalResult, by_prompt
from pipeline.report.analysis.statistics import ByPrompt
from pipeline.report.formatting import scale

WANTED = 12  # bars


def distributions(
    examined: Sequence[EvalResult], chosen: str | None, scorer: str
) -> list[dict[str, Any]]:
    """Of SFT and of the chosen model, one number per prompt; a bar holds what is from its edge up to the next one."""
    shown = sorted(
        (m for m in examined if m.name in (SFT, chosen)), key=lambda model: model.name != SFT
    )
    made = (
        _counted(
            "score", {model.name: model.marks.get(scorer, NOT_ASKED).means for model in shown}
        ),
        _counted("tokens", {model.name: by_prompt(model.answers, "tokens") for model in shown}),
    )
    return [each for each in made if each]


def _counted(what: str, values: Mapping[str, ByPrompt]) -> dict[str, Any] | None:
    known = {name: [*of.values()] for name, of in values.items() if of}
    if not known:
        return None
    ends = scale([value for of in known.values() for value in of], 0, 1, wanted=WANTED)
    edges = list(ends.ticks)
    counts = {
        name: np.histogram(np.clip(of, edges[0], edges[-1]), edges)[0].tolist()
        for name, of in known.items()
    }
    return {"what": what, "edges": edges, "prompts": counts}
