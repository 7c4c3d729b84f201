from pipeline.stages.sample import run as run
