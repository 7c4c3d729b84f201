from pipeline.stages.score import run as run
from pipeline.stages.score import score_early as score_early
