"""What a run leaves for people to look at: RUN/report.html, and RUN/README.md, its card.

Pages of a run are in `run_report`, those of a search in `search_report`, of a study in `study_report`; `page` says why
ECharts draws them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from raynn.card import write_card
from raynn.errors import RunError
from raynn.search_report import search_page
from raynn.study_report import is_study, read_study, study_page
from raynn.trial_table import is_search, read_search

FILE = "report.html"
MAX_BYTES = 2**30  # of the sources that are read once more at the end of a run


def write_report(run: str | Path, *, max_bytes: int | None = None) -> Path:
    """Writes RUN/report.html, whole or not at all, of a run, search or study that has ended, failed, or goes on.

    Args:
        run: the run folder.
        max_bytes: predictions are left out, and that is said, where the local sources are larger.

    Raises:
        RunError: it is no run folder, or cannot be written.
    """
    folder = Path(run)
    if is_study(folder):
        content = study_page(read_study(folder)).html()
    elif is_search(folder):
        content = search_page(read_search(folder)).html()
    else:
        from raynn.inspection import inspect
        from raynn.run_report import run_page

        content = run_page(inspect(folder, max_bytes=max_bytes)).html()
    partial = folder / f"{FILE}.partial-{os.getpid()}"
    try:
        partial.write_text(content, encoding="utf-8")
        partial.replace(folder / FILE)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"{folder / FILE} cannot be written: {error.strerror}; mend that, and try again") from None
    return folder / FILE


def conclude(folder: Path, say: Callable[[str], None]) -> None:
    """Report and card of a run that has just ended. Whatever goes wrong is said in a line: the run itself is whole.

    With RAYNN_REPORT=off in the environment nothing is written.
    """
    if os.environ.get("RAYNN_REPORT") == "off":
        return
    writers = [(write_card, "README.md"), (lambda run: write_report(run, max_bytes=MAX_BYTES), FILE)]
    for write, name in writers[1:] if is_study(folder) else writers:  # a study leaves no model to describe
        try:
            write(folder)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            say(f"{name} could not be written ({type(error).__name__}: {reason}); the run itself is whole")
