"""Run one coverage-guided fuzzer: ``python fuzz.py TARGET [libFuzzer options]``.

The first folder among the options receives what the fuzzer keeps; the committed corpus
is only read. A finding ends the run and is written where ``-artifact_prefix`` says.
"""

import functools
import os
import sys
import tempfile
from pathlib import Path

import atheris
import torch._weights_only_unpickler

HERE = Path(__file__).resolve().parent
INSTRUMENTED = {
    "archive": ["s3h_ext", "pickle"],
    "checkpoint": ["s3h_ext", "pickle", "zipfile"],
    "options": ["s3h_ext", "jsonargparse"],
}


def main() -> None:
    name, *rest = sys.argv[1:]
    # What came with Python or PyTorch was loaded without instrumentation.
    for module in ("pickle", "zipfile"):
        sys.modules.pop(module, None)
    with atheris.instrument_imports(include=INSTRUMENTED[name]):
        import targets

        from s3h_ext.runs import options
    if name == "options":
        # Building the parser takes as long as all the rest.
        options.make_parser = functools.cache(options.make_parser)
    if name == "checkpoint":
        atheris.instrument_func(torch._weights_only_unpickler.Unpickler.load)

    target = targets.TARGETS[name]
    on_disk = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="s3h-fuzz-", dir=on_disk) as scratch:
        folder = Path(scratch)
        flags = ["-timeout=120", "-rss_limit_mb=3000", "-max_len=20000"]
        flags.append(f"-dict={HERE / f'{name}.dict'}")
        atheris.Setup(
            [sys.argv[0], *flags, *rest, str(HERE / "corpus" / name)],
            lambda data: target(data, folder),
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
