"""The stages, one module each, and the libraries that the prepared parent loads for them."""

# What training, sampling and scoring import first. Each must survive a fork.
PRELOAD = ("transformers.generation", "transformers.models.auto", "transformers.trainer")
# Not where a GPU is: peft, which TRL's trainers import, loads bitsandbytes, and that opens the GPU.
PRELOAD_WITHOUT_GPU = ("peft", "trl.trainer.dpo_trainer")
