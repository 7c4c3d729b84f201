"""What it says when too few completions came."""

from types import SimpleNamespace

import pytest

from pipeline.config import AnswersFile
from pipeline.errors import StageError
from pipeline.sampling.failures import Failures


def test_the_limit_of_a_baseline_in_a_file_is_that_of_all_evaluations(tmp_path):
    cfg = SimpleNamespace(
        runtime=SimpleNamespace(max_failed=0.0),
        backend=AnswersFile(kind="answers", file="rival.json", questions=None),
        settings={"answer": SimpleNamespace(n=1)},
    )
    shards = SimpleNamespace(out=tmp_path, prompt_count=2)
    failures = Failures(cfg, shards, "evaluate.baselines.rival")
    row = {"prompt_id": "p", "sample_id": "s", "setting": "answer"}
    with pytest.raises(
        StageError, match=r"limit is evaluate\.sample\.runtime\.max_failed=0\."
    ) as e:
        failures.add(row, "no answer in the file")
    assert "Complete rival.json or raise the limit" in str(e.value)
