from pipeline.stages.prompts import run as run
