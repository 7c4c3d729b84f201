"""A multirun: Hydra launches the points, each writes its line in `points.json`; one failing point stops no other."""

import fcntl
import json
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pipeline.artifacts import write_text
from pipeline.compose import CONF, Arguments, point
from pipeline.config import Config
from pipeline.drive import drive, fresh_story

STATUS = {0: "done", 2: "refused", 75: "stopped"}


def sweep(arguments: Arguments, points: list[Config]) -> int:
    """Run every point; 1 when one of them did not finish. The last line is the path of `points.json`."""
    if points[0].dry_run:
        return max(drive(cfg) for cfg in points)
    folder = fresh_story(points[0]).absolute()
    print(f"{points[0].recipe}: {len(points)} points · {folder}")
    sys.argv = [sys.argv[0], "--multirun", *arguments.overrides, *arguments.searchpath, f"hydra.sweep.dir={folder}"]
    launch()
    written = json.loads((folder / "points.json").read_text())
    print(folder / "points.json")
    return 0 if len(written) == len(points) and all(line["status"] == "done" for line in written) else 1


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def launch(composed: DictConfig) -> None:
    job = HydraConfig.get()
    cfg = point(composed, job)
    story = Path(job.runtime.output_dir)
    print(f"\npoint {job.job.num}: {' '.join(_words(job))}", flush=True)
    code = drive(cfg, story)
    write_line(story.parent / "points.json", line_of(cfg, story, code, job))


def line_of(cfg: Config, story: Path, code: int, job: Any) -> dict[str, Any]:
    """What a point has to show: its overrides, its last model's score on the examined split, its KL, its report."""
    line = {"point": job.job.num, "overrides": _words(job), "status": STATUS.get(code, "failed")}
    report = story / "report.json"
    if code != 0 or not report.exists():
        return line
    model = json.loads(report.read_text())["models"][-1]
    score = model["metrics"].get(cfg.evaluate.scorer, {}).get("mean")
    kl = (model["kl"] or {}).get("mean")
    return {**line, f"{cfg.exam.split}_score": score, "kl": kl, "report": str(story / "report.html")}


def _words(job: Any) -> list[str]:
    """The overrides as a person types them."""
    return [word.lstrip("+") for word in job.overrides.task]


def write_line(file: Path, line: dict[str, Any]) -> None:
    """Add one line under a lock: points may run in several processes. The file is JSON whenever it is read."""
    with file.with_suffix(".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        lines = json.loads(file.read_text()) if file.exists() else []
        lines = sorted([*lines, line], key=lambda each: each["point"])
        write_text(file, "[\n" + ",\n".join(json.dumps(each) for each in lines) + "\n]\n")
