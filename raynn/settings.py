"""Settings: the only base class of a job's sections."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """One section of a job: frozen, typed, no unknown key.

    Strict: an integer stays an integer and text stays text. Files are validated as JSON, where strict mode
    still takes a list for a tuple and an integer for a real number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
