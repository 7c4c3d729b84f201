"""The best weights so far, on disk until the training ends: a stop restores them."""

from pathlib import Path

from pipeline.models.loading import State


class BestWeights:
    """Keeps the best weights, and the best at the newest checkpoint, which a resumed run needs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.secured = self._newest_step()

    def save(self, trained: State, step: int) -> None:
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = self.folder / "new.tmp"
        # Tied weights share a data pointer: save each once.
        unique = {
            weight.data_ptr(): (name, weight.contiguous()) for name, weight in trained.items()
        }
        save_file(dict(unique.values()), scratch)
        scratch.rename(self._weights_file(step))
        self._drop({self.secured, step})

    def restore(self, trained: State, step: int) -> None:
        from safetensors.torch import load_file

        for name, weight in load_file(self._weights_file(step)).items():
            trained[name].copy_(weight)

    def secure_newest(self) -> None:
        self.secured = self._newest_step()

    def drop_after(self, step: int) -> None:
        """Drop the weights of steps that a resumed training repeats."""
        self._drop({known for known in self._list_steps() if known <= step})
        self.secured = self._newest_step()

    def _drop(self, keep: set[int | None]) -> None:
        for step in self._list_steps():
            if step not in keep:
                self._weights_file(step).unlink()

    def _newest_step(self) -> int | None:
        return max(self._list_steps(), default=None)

    def _list_steps(self) -> list[int]:
        return [int(file.stem) for file in self.folder.glob("*.safetensors")]

    def _weights_file(self, step: int) -> Path:
        return self.folder / f"{step}.safetensors"
