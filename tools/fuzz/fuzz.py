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

HERE = Path(__file__).resolve().parent
INSTRUMENTED = {
    "archive": ["s3h_ext", "pickle"],
    "options": ["s3h_ext", "jsonargparse"],
}


def main() -> None:
    name, *rest = sys.argv[1:]
    # What came with Python was loaded without instrumentation.
    sys.modules.pop("pickle", None)
    with atheris.instrument_imports(include=INSTRUMENTED[name]):
        import targets

        from s3h_ext.runs import options
    if name == "options":
        # Building the parser takes as long as all the rest.
        options.make_parser = functools.cache(options.make_parser)

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
