"""Another Python process."""

import subprocess
import sys


def python(*arguments, status=0, **options):
    """Runs this interpreter, which has to end with ``status``."""
    command = [sys.executable, *map(str, arguments)]
    options = {"capture_output": True, "text": True, **options}
    done = subprocess.run(command, **options)
    assert done.returncode == status, done.stderr[-3000:]
    return done
