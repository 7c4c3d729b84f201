"""What holds for every test: nothing is fetched, nothing is reported home, bars stay out of the output."""

import os

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "passive",  # spinning threads are ten times slower on a machine that others use too
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "WANDB_MODE": "offline",
}
