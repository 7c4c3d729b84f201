"""Trained weights of an earlier step, on the disk until the training ends: what stopping too late goes back to."""

from pathlib import Path

from pipeline.models.loading import State


class BestWeights:
    """The wanted ones, and those that were wanted when the newest checkpoint was made: a resumed run may want them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.secured = self._newest()

    def save(self, trained: State, step: int) -> None:
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = self.folder / "new.tmp"
        once = {
            weight.data_ptr(): (name, weight.contiguous()) for name, weight in trained.items()
        }  # tied ones are one
        save_file(dict(once.values()), scratch)
        scratch.rename(self._file(step))
        self._drop({self.secured, step})

    def restore(self, trained: State, step: int) -> None:
        from safetensors.torch import load_file

        for name, weight in load_file(self._file(step)).items():
            trained[name].copy_(weight)

    def secure(self) -> None:
        self.secured = self._newest()

    def forget_after(self, step: int) -> None:
        """Of steps that are taken again."""
        self._drop({known for known in self._steps() if known <= step})
        self.secured = self._newest()

    def _drop(self, keep: set[int | None]) -> None:
        for step in self._steps():
            if step not in keep:
                self._file(step).unlink()

    def _newest(self) -> int | None:
        return max(self._steps(), default=None)

    def _steps(self) -> list[int]:
        return [int(file.stem) for file in self.folder.glob("*.safetensors")]

    def _file(self, step: int) -> Path:
        return self.folder / f"{step}.safetensors"
