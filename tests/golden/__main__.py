import json
from pathlib import Path

from tests.golden.converted import INPUTS, render
from tests.support.house import fingerprints

Path(__file__).with_name("smoke.json").write_text(
    json.dumps(fingerprints("recipes=smoke"), indent=1) + "\n"
)
for file in INPUTS:
    (file.parent / "recipes" / f"{file.stem}.yaml").write_text(render(file))
