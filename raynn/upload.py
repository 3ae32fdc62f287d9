"""What `ray job submit` would send of a folder, and which of its folders make it large."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 500 * 10**6  # Ray refuses a little more: 512 MiB, the largest message to its head


@dataclass(frozen=True)
class Upload:
    """Files by path within the folder, and their bytes. Ray packs them as they are, uncompressed."""

    files: Mapping[str, int]

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(self.files.values())

    def largest(self, count: int = 3) -> list[tuple[str, int]]:
        """Folders, at most two deep, or files at the top, and their bytes; the largest first."""
        sizes: Counter[str] = Counter()
        for path, size in self.files.items():
            folders = path.split("/")[:-1][:2]
            sizes["/".join(folders) + "/" if folders else path] += size
        return sizes.most_common(count)

    def holds(self, path: Path) -> bool:
        """Whether a path within the folder, of a file or a folder, goes along."""
        text = path.as_posix()
        return text in self.files or any(name.startswith(text.rstrip("/") + "/") for name in self.files)


def measured(folder: Path, excludes: Sequence[str] = ()) -> Upload:
    """What is sent of a folder: all but what its .rayignore and .gitignore files, Ray's own rules, and `excludes`
    of a runtime environment leave out."""
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE, get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)
    folder, files = folder.absolute(), dict[str, int]()

    def note(path: Path) -> None:
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path.stat().st_size

    gitignore = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    left_out = [_get_excludes(folder, [*get_runtime_env_default_excludes(), *excludes])]
    _dir_travel(folder, left_out, note, include_gitignore=gitignore)
    return Upload(files)
