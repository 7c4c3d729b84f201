"""merge: one model whose weights are the sum of several models' weights, each times its share.

Reads and writes safetensors tensor by tensor, without a GPU. Adapters stay one where that is exact
(see models/soup.py).
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.artifacts import Model, write_json
from pipeline.config import MergePoint
from pipeline.errors import UserError
from pipeline.models import soup
from pipeline.models.interpolation import split_shares
from pipeline.progress import print_note


def run(cfg: MergePoint, out: Path, *, model: Model, others: list[Model] | None = None) -> Model:
    """`model` is the trained one, whose share is `alpha`; the others share the rest equally."""
    inputs = [model, *(others or [])]
    parents = [
        *map(soup.open_parent, inputs),
        *(soup.open_folder(path, f"merge.models.{at}") for at, path in enumerate(cfg.models)),
    ]
    soup.check_alike(parents)
    shares = split_shares(cfg.alpha, len(parents))
    names = [f"{each.path.parent.name}/{each.path.name}" for each in inputs]
    names += [f"merge.models.{at}" for at in range(len(cfg.models))]
    made = write_merged(cfg, parents, shares, out)
    rows = [{"model": name, "share": share} for name, share in zip(names, shares, strict=True)]
    write_json(out / "merge.json", {"method": cfg.method, "parents": rows})
    return made


def write_merged(
    cfg: MergePoint, parents: Sequence[soup.Parent], shares: list[float], out: Path
) -> Model:
    has_adapter = any(parent.adapter_folder for parent in parents)
    if cfg.densify or not has_adapter:
        return soup.write_weights(parents, shares, cfg.method, out)
    if cfg.method == "slerp":
        raise UserError(
            "merge.method=slerp: a point on the arc between two adapters is not an adapter."
            f" {soup.DENSIFY}"
        )
    made = soup.write_adapter(parents, shares, out)
    print_note(f"an adapter of rank {made.record['peft']['r']} on {made.record['base']}")
    return made
