"""Preparation for the work of a command; its help needs none."""

from __future__ import annotations

import os
from typing import Final

from pgcorpus.services.cli.output import visible

PATIENCE_SECONDS: Final = 5
"""A person watches a command, and a wrong address is seen at once. A worker waits for ever."""


def prepare() -> None:
    """Read the settings of the environment that hold for every command.

    Raises:
        SettingsError: One of them cannot be used.
    """
    from pgcorpus.db.settings import Settings, environment
    from pgcorpus.services.logs import set_up_logging

    if not environment().get("DB_CONNECT_RETRY", "").strip():  # a command gives up sooner
        os.environ["DB_CONNECT_RETRY"] = str(PATIENCE_SECONDS)
    settings = Settings.from_env()
    set_up_logging(settings, make_visible=visible)
    if settings.tracing_enabled:
        from pgcorpus.db.tracing import start_tracing

        start_tracing()
