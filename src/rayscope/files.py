"""Small files, written whole or not at all."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    temporary = path.with_name("." + path.name)
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
