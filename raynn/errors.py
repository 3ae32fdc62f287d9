"""What can go wrong, as a tree. A message names the field, the value, the relation that fails, and the way out.

RaynnError
├── UserError            the user can mend it; exit status 2, no traceback
│   ├── JobError         the job file or an override
│   ├── DataError        the data: sources, columns, rows
│   ├── RunError         a run folder that is missing, unfinished or not one
│   └── ResourceError    workers, devices or a cluster that cannot be had
└── TrainingError        failed at run time; exit status 1
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RaynnError(Exception):
    """The root: everything raynn raises on purpose."""


class UserError(RaynnError):
    """The user can mend it."""


class JobError(UserError):
    """The job file or an override is wrong."""


class DataError(UserError):
    """The data do not fit the job."""


class RunError(UserError):
    """A run folder is missing, unfinished or not a run folder."""


class ResourceError(UserError):
    """Workers, devices or a cluster that cannot be had."""


class TrainingError(RaynnError):
    """Training failed at run time."""


class Detached(KeyboardInterrupt):
    """Ctrl-C left what a command had started to itself; the message says how to come back."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest valid name, or an empty string."""
    nearest = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
