"""What happens when a native library is not there."""

import pytest
import torch

from s3h_ext.ops._library import LIBRARY, NativeLibrary, implement, load_cuda


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
    implement({"CPU": library}, test_of_a_broken_library=lambda x: x + 1)
    with pytest.raises(RuntimeError, match=r"_broken\.so is not available") as caught:
        torch.ops.s3h.test_of_a_broken_library(torch.zeros(1))
    assert caught.value.__cause__ is library.error


def cuda_implementation(operator):
    """Calls an operator's CUDA implementation with a tensor on the CPU."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    return getattr(torch.ops.s3h, operator).default.redispatch(keys, torch.ones(1))


@pytest.mark.parametrize(("cuda", "there"), [(None, True), ("13.0", False)])
def test_cuda_library_is_left_alone_without_cuda_or_a_build(
    monkeypatch, tmp_path, cuda, there
):
    path = tmp_path / "_s3h_cuda.so"
    if there:
        path.write_bytes(b"not a library")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert load_cuda(path) is None
    operator = f"test_of_cuda_left_alone_{there}"
    LIBRARY.define(f"{operator}(Tensor x) -> Tensor")
    implement({"CUDA": None}, **{operator: lambda x: x + 1})
    assert cuda_implementation(operator).item() == 2


def test_broken_cuda_library_fails_at_the_first_call_and_not_before(
    monkeypatch, tmp_path
):
    path = tmp_path / "_s3h_cuda.so"
    path.write_bytes(b"not a library")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    library = load_cuda(path)
    LIBRARY.define("test_of_broken_cuda(Tensor x) -> Tensor")
    implement({"CUDA": library}, test_of_broken_cuda=lambda x: x + 1)
    with pytest.raises(RuntimeError, match=r"_s3h_cuda\.so is not available") as caught:
        cuda_implementation("test_of_broken_cuda")
    assert caught.value.__cause__ is library.error


def test_every_operator_has_a_cuda_implementation():
    for name in ("similarity_logsumexp", "class_sum_dots"):
        for operator in (name, f"{name}_backward"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(
                f"s3h::{operator}", "CUDA"
            )


def test_a_kernel_that_is_registered_is_not_replaced():
    LIBRARY.define("test_of_registered_cuda(Tensor x) -> Tensor")
    LIBRARY.impl("test_of_registered_cuda", lambda x: x + 2, "CUDA")
    implement({"CUDA": None}, test_of_registered_cuda=lambda x: x + 1)
    assert cuda_implementation("test_of_registered_cuda").item() == 3
