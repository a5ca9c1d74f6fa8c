"""One check in a process of its own: ``python -m foveate.gpu_checks.worker RUN FILE SETTINGS ROWS COLUMNS``.

The last three are JSON.

Exit status 0: it ran to its end. 3: it cannot be run here, and the last line on standard error is the reason. Else it broke.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from .spec import Notes, Settings, Skip

SKIPPED = 3


def main(arguments: list[str]) -> int:
    run, file, settings, rows, columns = arguments
    notes = Notes(Path(file), json.loads(rows), json.loads(columns))
    notes.write()
    module, _, function = run.partition(":")
    try:
        vars(importlib.import_module(module))[function](Settings(**json.loads(settings)), notes)
    except Skip as reason:
        sys.stderr.write(f"\n{reason}\n")
        return SKIPPED
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name in ("", "foveate"):
            raise
        sys.stderr.write(f"\n{name} is not installed\n")
        return SKIPPED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
