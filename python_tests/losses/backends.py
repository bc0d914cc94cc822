"""The operations of the contrastive losses by other kernels than this machine's own."""

import shutil

import pytest
import torch

from python_tests.cuda_host import kernels
from s3h_ext.losses import _common, _seen
from s3h_ext.ops.plain import class_sums, similarity

NAMES = ["native", "plain", "cuda-host"]
#: Where the losses' modules have the operations.
PLACES = [_seen, _common]


class PlainLogsumexp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, keys, arguments):
        ctx.given = queries, keys, *arguments.values()
        lse, *ctx.kept = similarity.similarity_logsumexp(*ctx.given)
        ctx.lse = lse
        return lse.clone()

    @staticmethod
    def backward(ctx, grad):
        of_queries, of_keys = similarity.similarity_logsumexp_backward(
            grad, ctx.lse, *ctx.kept, True, True, *ctx.given
        )
        return of_queries, None if ctx.given[1] is None else of_keys, None


class HostLogsumexp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, keys, arguments):
        ctx.given = queries, keys, arguments
        return run(queries, keys, arguments, queries.new_zeros(len(queries)))[0]

    @staticmethod
    def backward(ctx, grad):
        queries, keys, arguments = ctx.given
        gradients = run(queries, keys, arguments, grad)[1]
        return (*gradients, *(None,) * (3 - len(gradients)))


def run(queries, keys, arguments, upstream):
    options = {**arguments}
    value, bias = options.pop("same_label_value"), options.pop("same_label_bias")
    options["same_label_bias"] = value if bias is None else bias
    return kernels.similarity(queries, keys, upstream, **options)


def logsumexp(function):
    def call(queries, keys=None, *, assume_normalized=False, **given):
        names = "temperature key_bias query_labels key_labels same_label_bias".split()
        arguments = {name: given.pop(name, None) for name in names}
        index = given.pop("self_index", None)
        arguments |= {"same_label_value": 0.0, "self_index": index}
        assert not given
        return function.apply(queries, keys, arguments)

    return call


class PlainSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *given):
        ctx.given = given
        return class_sums.class_sum_dots(*given)

    @staticmethod
    def backward(ctx, grad):
        queries, keys = class_sums.class_sum_dots_backward(grad, True, True, *ctx.given)
        return queries, None if ctx.given[1] is None else keys, None, None, None


class HostSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *given):
        ctx.given = given
        return kernels.class_sums(*given, given[0].new_zeros(len(given[0])))[0]

    @staticmethod
    def backward(ctx, grad):
        _, *gradients = kernels.class_sums(*ctx.given, grad)
        return (*gradients, *(None,) * (5 - len(gradients)))


def sums(function):
    def call(queries, keys=None, *, query_classes, key_classes=None, num_classes):
        return function.apply(queries, keys, query_classes, key_classes, num_classes)

    return call


def use(monkeypatch, name, *places):
    """Has the losses call the operations of a backend, in ``places`` too."""
    if name == "native":
        return
    if name == "cuda-host" and not (shutil.which("make") and shutil.which("g++")):
        pytest.skip("needs make and g++")
    lse, dots = {
        "plain": (PlainLogsumexp, PlainSums),
        "cuda-host": (HostLogsumexp, HostSums),
    }[name]
    for place in (*PLACES, *places):
        for operation, replaced in (
            ("similarity_logsumexp", logsumexp(lse)),
            ("class_sum_dots", sums(dots)),
        ):
            if hasattr(place, operation):
                monkeypatch.setattr(place, operation, replaced)
