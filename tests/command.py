"""The installed command in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Command = Callable[..., subprocess.CompletedProcess[str]]
PGCORPUS = Path(sys.executable).with_name("pgcorpus")
