"""Models that a user gives to merge: whether they open and are like the model that is trained."""

from functools import partial

from pipeline.config import Checkpoint, MergePoint
from pipeline.errors import run_all
from pipeline.hashing import find_local_folder
from pipeline.models import soup
from pipeline.preflight.lineage import trace_lineage
from pipeline.step import Step


def check_models(step: Step) -> None:
    """Before the trainings that would end at a model which cannot be merged."""
    cfg = step.config
    assert isinstance(cfg, MergePoint)
    given = run_all(
        partial(soup.open_folder, path, f"merge.models.{at}") for at, path in enumerate(cfg.models)
    )
    *_, origin = trace_lineage(step.inputs["model"])
    if isinstance(origin.config, Checkpoint):
        folder = find_local_folder(origin.config.name_or_path, origin.config.revision)
        if folder and (folder / "config.json").is_file():
            given.insert(0, soup.Parent(folder, folder))
    if len(given) > 1:
        soup.check_alike(given)
