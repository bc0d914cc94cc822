"""Copies what the project keeps of a finished run into ``results/``.

    python tools/keep_run.py runs/NAME

The tables, the log and the options, without the paths of the machine that trained, and
a checkpoint of the network's weights alone, averaged if the run averages them: enough
for ``evaluate``, ``predict``, ``export`` and ``--init_from``, not for ``--resume``. Git
ignores checkpoints in ``results/``; add this one with ``git add --force``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from s3h_ext.models.average import averaged_state
from s3h_ext.runs.checkpoint import save_checkpoint, sound_checkpoints
from s3h_ext.runs.folder import RunFolder

RESULTS = Path(__file__).parents[1] / "results"
TABLES = ("card", "summary", "metrics", "per_class", "confusion", "calibration", "log")


def keep(source: RunFolder, kept: RunFolder) -> Path:
    """Copy a finished run's tables and weights; return the path of its checkpoint."""
    if not source.summary.is_file():
        raise SystemExit(f"expected a finished run, got {source}, without a summary")
    config = source.read_config()
    config["data"]["root"] = config["data"]["lists"] = None
    config["output"] = f"{RESULTS.name}/{kept.path.name}"
    kept.path.mkdir(exist_ok=True)
    kept.write_config(config)
    for name in TABLES:
        text = getattr(source, name).read_text(encoding="utf-8")
        text = text.replace(str(source.path.resolve().parent), RESULTS.name)
        getattr(kept, name).write_text(text, encoding="utf-8")
    _, state = next(sound_checkpoints(source))
    weights = {
        name: value
        for name, value in averaged_state(state).items()
        if name.startswith("model.")
    }
    return save_checkpoint(
        kept, state["epochs_done"], {"method": weights, "config": config}
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    run = parser.parse_args().run.resolve()
    checkpoint = keep(RunFolder(run), RunFolder(RESULTS / run.name))
    print(f"{checkpoint}: {checkpoint.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
