"""What overwrite=true replaces: kept in the run's folder until the new run is finished, put back where it wrote nothing."""

import shutil
from collections.abc import Sequence
from pathlib import Path


class Backup:
    """The files of a run (`records`) and what it made (`outputs`), set aside within their own folder.

    After a kill, the name of the folder they lie in says what to do: what is in `.moving` belongs in the run's folder;
    `.replaced` holds all of the old run. An unfinished run that is overwritten in turn takes the backup that it has along.
    """

    def __init__(self, folder: Path, prefix: str, records: Sequence[str], outputs: Sequence[str]):
        self.folder, self.records, self.outputs = folder, records, outputs
        self.replaced, self.moving = folder / f".{prefix}replaced", folder / f".{prefix}moving"

    def begun(self) -> bool:
        """Is there any output in the folder itself?"""
        return any((self.folder / name).exists() for name in self.outputs)

    def make(self) -> None:
        names = [*self.records, *self.outputs, self.replaced.name]
        there = [self.folder / name for name in names if (self.folder / name).exists()]
        if there:
            self.moving.mkdir()
            for path in there:
                path.rename(self.moving / path.name)
            self.moving.rename(self.replaced)

    def settle(self) -> bool:
        """After a kill or a failure: the old run goes back where the new one has no output. Says whether it went back."""
        if not self.moving.exists():
            if not self.replaced.exists() or self.begun():
                return False
            for name in self.records:  # those of the run that never began
                (self.folder / name).unlink(missing_ok=True)
            self.replaced.rename(self.moving)
        for path in self.moving.iterdir():
            path.rename(self.folder / path.name)
        self.moving.rmdir()
        return True

    def drop(self) -> None:
        """Once the new run is finished."""
        shutil.rmtree(self.replaced, ignore_errors=True)
