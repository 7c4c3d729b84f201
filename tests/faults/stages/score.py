from pipeline.stages.score import run as run
