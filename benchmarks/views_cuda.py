"""Rendering views on a GPU: our kernel against what else a user could run.

    python -m benchmarks.views_cuda [--case NAME ...] [--output DIR]

The cases of :mod:`benchmarks.views`, with images that lie on the GPU already, and the
recipe of :mod:`benchmarks.views_autoaugment`, where everybody draws. Elsewhere we and
the plain form get the same boxes, flips and colour matrices; DALI, kornia and
torchvision draw their own of about the same distribution, their usual way (the latter
and, for photographs, kornia image by image). ``copy`` moves as many bytes as we must:
the boxes in and the views out. Times are CUDA events after a warm-up. Our views are
first compared with the plain form's, or with our CPU kernels' where everybody draws;
where they differ, ours has no row and the status is not 0. Appends to
``views_cuda.csv``.

``--device cpu`` runs the same code at tiny sizes: a test of this file, not a benchmark.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import views_autoaugment
from benchmarks.similarity_cuda import agrees, captured, machine, timings
from benchmarks.tables import append
from benchmarks.views_peers import dali_views, kornia, ours
from benchmarks.views_work import CASES, MEAN, STD, Work, make_work, stitched
from s3h_ext.ops.plain.views import render_views as render_views_plain

OURS = {"s3h_ext": torch.float32, "s3h_ext bf16": torch.bfloat16}
EVERY_CASE = (*CASES, views_autoaugment.CASE)
BATCH = {"cifar": 512, "photos": 256, "montage": 256, views_autoaugment.CASE: 128}


@dataclass(frozen=True)
class Row:
    date: str
    case: str
    peer: str
    mode: str  # eager or graph
    p20_ms: float
    median_ms: float
    p80_ms: float
    runs: int
    views_per_second: float
    gb_per_second: float  # of the bytes that we must move, whoever it is
    views: int
    batch: int
    peer_version: str
    failure: str
    gpu: str
    driver: str
    cuda: str
    torch: str
    kernels: str


def moved(work: Work, device: torch.device) -> Work:
    tensors = {
        field.name: value.to(device)
        for field in fields(work.patches)
        if isinstance(value := getattr(work.patches, field.name), Tensor)
    }
    images = (
        work.images.to(device)
        if isinstance(work.images, Tensor)
        else [image.to(device) for image in work.images]
    )
    return replace(work, images=images, patches=replace(work.patches, **tensors))


def least_bytes(work: Work, element: int) -> int:
    """Each box read once, each view written once."""
    boxes = int(work.patches.box[:, 2:].prod(dim=1).sum())
    return 3 * boxes + 3 * element * work.views * work.out**2


def copy(work: Work, device: torch.device) -> Callable[[], Tensor]:
    half = least_bytes(work, 4) // 2
    source = torch.randint(0, 256, (half,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def plain(work: Work) -> Callable[[], Tensor]:
    p = work.patches
    images = [work.images] if isinstance(work.images, Tensor) else work.images
    return lambda: render_views_plain(
        images,
        p.image,
        p.box,
        p.flip,
        p.colour,
        None,
        p.view,
        p.rect,
        None,
        work.views,
        work.out,
        work.out,
        MEAN,
        STD,
        0.0,
        False,
        torch.float32,
    ).permute(0, 3, 1, 2)


def torchvision(work: Work) -> Callable[[], Tensor]:
    """The v2 transforms, of torchvision, which draw once per call: image by image."""
    from torchvision.transforms import v2

    if work.out == 32:
        first: Any = v2.RandomCrop(32, padding=4)
    else:
        first = v2.RandomResizedCrop(work.size, scale=(0.2, 1.0), antialias=True)
    pipeline = v2.Compose(
        [
            first,
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    planes = [image.permute(2, 0, 1) for image in work.images]
    repeat = len(work.patches) // len(planes)

    def run() -> Tensor:
        parts = [pipeline(image) for image in planes for _ in range(repeat)]
        return stitched(work, torch.stack(parts))

    return run


def dali(work: Work) -> Callable[[], Tensor]:
    """DALI's own random crops and jitter on the GPU, all views from one feeding."""
    from nvidia.dali import fn, pipeline_def

    images = list(work.images)

    # Without prefetching, or it would work while the others' clocks run.
    @pipeline_def(
        batch_size=len(images),
        num_threads=4,
        device_id=torch.cuda.current_device(),
        exec_pipelined=False,
        exec_async=False,
    )
    def define() -> Any:
        source = fn.external_source(
            source=lambda: images, batch=True, device="gpu", layout="HWC"
        )
        return dali_views(work, source)

    pipeline = define()
    pipeline.build()

    def run() -> Tensor:
        views = [torch.from_dlpack(out.as_tensor()) for out in pipeline.run()]
        return stitched(work, torch.cat(views))

    return run


def kornia_on(
    work: Work, device: torch.device, build: Callable[[Work], Callable[[], Tensor]]
) -> Callable[[], Tensor]:
    """What ``build`` makes of kornia, its constants on the device.

    The calls are outside of the mode, which would cost every operation host time.
    """
    with torch.device(device):
        return build(work)


def peers(
    case: str, work: Work, device: torch.device
) -> Iterator[tuple[str, str, str, Callable[[], Callable[[], Any]]]]:
    """Yields name, mode, package and what makes the call, ours first."""
    policy = case == views_autoaugment.CASE
    render = views_autoaugment.ours if policy else ours
    for name, dtype in OURS.items():
        call = render(work, dtype)
        yield name, "eager", "s3h-ext", lambda call=call: call
        if device.type == "cuda":
            yield name, "graph", "s3h-ext", lambda call=call: captured(call)
    yield "copy", "eager", "torch", lambda: copy(work, device)
    if policy:
        build = views_autoaugment.kornia
        yield "kornia", "eager", "kornia", lambda: kornia_on(work, device, build)
        build_v2 = views_autoaugment.torchvision
        yield "torchvision v2", "eager", "torchvision", lambda: build_v2(work)
        return
    yield "plain PyTorch", "eager", "torch", lambda: plain(work)
    yield "kornia", "eager", "kornia", lambda: kornia_on(work, device, kornia)
    yield "torchvision v2", "eager", "torchvision", lambda: torchvision(work)
    if device.type == "cuda":
        for package in ("nvidia-dali-cuda130", "nvidia-dali-cuda120"):
            yield "DALI GPU", "eager", package, lambda: dali(work)


def wrong_ours(case: str, work: Work) -> list[str]:
    """Returns which of ours differ from the plain form, or from our CPU kernels."""
    if case == views_autoaugment.CASE:
        render = views_autoaugment.ours
        right = render(moved(work, torch.device("cpu")), torch.float32)()
        right = right.to(work.patches.image.device)
    else:
        render, right = ours, plain(work)()
    return [
        name
        for name, dtype in OURS.items()
        if not agrees(name, [render(work, dtype)()], [right], dtype)
    ]


def measure(
    case: str, batch: int, device: torch.device, budget: float, wrong: list[str]
) -> Iterator[Row]:
    """Times every peer; ours whose values are wrong are added to ``wrong``."""
    pixels = "cifar" if case == views_autoaugment.CASE else case
    work = moved(make_work(pixels, batch), device)
    about = machine(device)
    shape = (work.views, 3, work.out, work.out)
    skipped: list[str] = []
    try:
        skipped = wrong_ours(case, work)
    except Exception as error:  # ours fails below, or there is no room for both
        print(f"  s3h_ext: not checked: {type(error).__name__}")
    wrong += [f"{case}, {name}" for name in skipped]
    for name, mode, package, make in peers(case, work, device):
        if name in skipped:
            continue
        element = 2 if name == "s3h_ext bf16" else 4
        times, failure, number = [float("nan")], "", ""
        try:
            number = version(package)
            call = make()
            if mode == "eager" and name != "copy":
                assert call().shape == shape, name
            times = timings(call, device, budget)
        except (ImportError, PackageNotFoundError) as error:
            print(f"  {name}: not run, {error}")
            continue
        except Exception as error:  # a peer's failure is a result too
            failure = type(error).__name__
            print(f"  {name}, {mode}: {failure}: {str(error).splitlines()[:1]}")
        median = statistics.median(times)
        row = Row(
            date=datetime.date.today().isoformat(),
            case=case,
            peer=name,
            mode=mode,
            p20_ms=round(times[len(times) // 5], 5),
            median_ms=round(median, 5),
            p80_ms=round(times[len(times) * 4 // 5], 5),
            runs=0 if failure else len(times),
            views_per_second=round(1e3 * work.views / median, 1),
            gb_per_second=round(1e-6 * least_bytes(work, element) / median, 1),
            views=work.views,
            batch=batch,
            peer_version=number,
            failure=failure,
            **about,
        )
        if not failure:
            print(
                f"  {name:<16} {mode:<6} {row.median_ms:>10.4f} ms "
                f"[{row.p20_ms:.4f}, {row.p80_ms:.4f}] {row.gb_per_second:>8.1f} GB/s",
                flush=True,
            )
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--case", nargs="*", choices=EVERY_CASE, default=list(EVERY_CASE)
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="for each timing")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "no GPU that this PyTorch can use; --device cpu tests the code"
        )
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    target = arguments.output / "views_cuda.csv"
    wrong: list[str] = []
    for case in arguments.case:
        batch = BATCH[case] if device.type == "cuda" else 4
        print(f"{case}, batch {batch}")
        for row in measure(case, batch, device, arguments.seconds, wrong):
            append(target, [asdict(row)])
    if wrong:
        raise SystemExit(f"wrong values: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
