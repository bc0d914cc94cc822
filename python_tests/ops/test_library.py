"""What happens when a native library is not there."""

import pytest
import torch

from s3h_ext.ops._library import LIBRARY, NativeLibrary


def test_missing_library_says_how_to_build(tmp_path):
    library = NativeLibrary(tmp_path / "_none.so")
    assert not library.loaded
    assert isinstance(library.error, FileNotFoundError)
    with pytest.raises(RuntimeError, match=r"pip install --no-build-isolation -e \."):
        library.text("s3h_built_with")


def test_load_error_is_kept_and_raised_with_its_cause_at_the_first_call(tmp_path):
    broken = tmp_path / "_broken.so"
    broken.write_bytes(b"not a library")
    library = NativeLibrary(broken)
    assert isinstance(library.error, OSError)
    LIBRARY.define("test_of_a_broken_library(Tensor x) -> Tensor")
    library.implement_failure("test_of_a_broken_library", key="CPU")
    with pytest.raises(RuntimeError, match=r"_broken\.so is not available") as caught:
        torch.ops.s3h.test_of_a_broken_library(torch.zeros(1))
    assert caught.value.__cause__ is library.error
