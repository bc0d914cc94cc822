"""Print requirements from pyproject.toml, one a line, for `pip install -r`.

pip cannot install a project's dependencies without building the project, and the
Makefile wants just that: linters without a native build, a native build without
resolving anything again.

Usage: python tools/requirements.py GROUP...
where GROUP is `build`, `runtime` or the name of an extra.
"""

import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10: pip, always there in a venv, carries one
    from pip._vendor import tomli as tomllib  # type: ignore[no-redef]


def main(groups: list[str]) -> None:
    root = Path(__file__).resolve().parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    dependencies = project["project"]["dependencies"]  # torch comes first
    known = {
        "build": [*project["build-system"]["requires"], *dependencies[:1]],
        "runtime": dependencies,
        **project["project"]["optional-dependencies"],
    }
    if not groups or not set(groups) <= set(known):
        raise SystemExit(
            f"requirements.py: expected groups out of {', '.join(known)}; "
            f"got {' '.join(groups) or 'none'}"
        )
    print(*dict.fromkeys(line for group in groups for line in known[group]), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
