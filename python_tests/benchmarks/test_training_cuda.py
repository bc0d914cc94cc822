"""Time per epoch and profile of a step, tried on the CPU at a tiny size."""

import csv
import math

import numpy as np
import pytest

from benchmarks import profile_step, training_cuda
from benchmarks.apart import apart
from benchmarks.cifar_like import dataset_of, generated
from s3h_ext.data.longtail import class_profile
from s3h_ext.runs.config import DataConfig
from s3h_ext.training.trainer import Trainer

SMALL = ["--device", "cpu", "--preset", "cifar100-lt/ce"]


def rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_generated_images_are_as_many_as_the_real_ones():
    data = generated("cifar100-lt", 100)
    expected = class_profile(100, largest=500, imbalance=100)
    assert np.array_equal(data.class_counts, expected)
    assert len(data.train) == 10847
    assert np.bincount(data.test.labels).tolist() == [100] * 100
    assert data.train.images.shape[1:] == (32, 32, 3)
    # A class is known by its colour.
    first = data.train.images[:500].mean(axis=(1, 2))
    assert first.std(axis=0).max() < 3
    assert np.ptp(data.train.images[::50].mean(axis=(1, 2, 3))) > 30
    assert len(generated("cifar10-lt", 10, 0.01).train) < 250


def test_real_images_are_taken_where_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("S3H_DATA_ROOT", raising=False)
    config = DataConfig("cifar100-lt")
    assert dataset_of(config)[1] == "generated"
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("S3H_DATA_ROOT", str(tmp_path))
    assert dataset_of(config)[1] == "generated"
    assert "images are generated" in capsys.readouterr().err
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "meta").touch()
    with pytest.raises(FileNotFoundError, match="missing train, test"):
        dataset_of(config)


def test_epochs_are_timed_in_turns_and_a_mode_may_fail(tmp_path, monkeypatch, capfd):
    """A trainer that knows graphs is played: one mode works, the other one does not."""
    monkeypatch.setattr(training_cuda, "graph_modes", lambda: ("off", "on"))
    order = []

    def start(arguments, *rest, real=training_cuda.start):
        mode = arguments[-1].removeprefix("--graphs=")
        run = real(arguments[:-1], *rest)
        order.append((mode, 0))
        once = run.epoch

        def epoch():
            order.append((mode, len(run.seconds)))
            if mode == "on" and len(run.seconds) == 1:
                raise RuntimeError("capture")
            once()

        run.epoch = epoch
        return run

    monkeypatch.setattr(training_cuda, "start", start)
    arguments = [*SMALL, "--epochs", "3", "--output", str(tmp_path)]
    assert training_cuda.main(arguments) == 1
    assert order == [("off", 0), ("on", 0), ("off", 1), ("on", 1), ("off", 2)]
    off, on = rows(tmp_path / "training_cuda.csv")
    assert (on["graphs"], on["failure"]) == ("on", "RuntimeError")
    assert math.isnan(float(on["epoch_seconds"]))
    assert (off["graphs"], off["failure"], off["data"]) == ("off", "", "generated")
    value = {k: float(v) for k, v in off.items() if k.endswith("seconds")}
    assert off["epochs"] == "3"
    assert value["fastest_epoch_seconds"] > 0
    epochs = value["first_seconds"] + 199 * value["epoch_seconds"]
    assert value["train_seconds"] == pytest.approx(epochs, rel=1e-2)
    # Evaluated every fifth epoch, saved before that and after each one.
    with_evaluation = value["train_seconds"] + 40 * value["evaluation_seconds"]
    assert value["with_evaluation_seconds"] == pytest.approx(with_evaluation, rel=1e-2)
    saved = value["with_evaluation_seconds"] + 240 * value["checkpoint_seconds"]
    assert value["with_checkpoints_seconds"] == pytest.approx(saved, rel=1e-2)
    out, err = capfd.readouterr()
    assert "cifar100-lt/ce, graphs on: RuntimeError" in out
    assert "capture" in err


def test_every_preset_has_a_process_and_a_failure_is_not_the_end(tmp_path, capfd):
    program = tmp_path / "sometimes.py"
    program.write_text("import sys; print(sys.argv[1:]); sys.exit('b' in sys.argv)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        cases = [("--preset", name) for name in "abc"]
        assert apart("sometimes", cases, ["--x"]) == 1
        assert apart("sometimes", cases[:1]) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[2] == "['--preset', 'c', '--x']"
    assert err.splitlines() == ["--preset b: status 1"]


def test_one_epoch_is_not_enough(capsys):
    with pytest.raises(SystemExit):
        training_cuda.main([*SMALL, "--epochs", "1"])
    assert "--epochs: expected at least 2, got 1" in capsys.readouterr().err


def test_a_profile_says_whose_time_a_step_is(tmp_path, capsys, monkeypatch):
    seen = []
    step = Trainer.train_epoch
    monkeypatch.setattr(
        Trainer, "train_epoch", lambda *args: seen.append(args[1]) or step(*args)
    )
    arguments = ["--device", "cpu", "--preset", "cifar100-lt/hybrid-psc", "--tiny"]
    arguments += ["--steps", "1", "--batch_size", "64", "--output", str(tmp_path)]
    arguments += ["--method.views", "2", "--precision=fp32"]
    assert profile_step.main(arguments) == 0
    assert seen == [0, 1]  # two steps an epoch, and two before the two
    found = rows(tmp_path / "profile_step.csv")
    preset = "cifar100-lt/hybrid-psc --method.views 2"
    assert {row["preset"] for row in found} == {preset}
    kinds = {row["kind"]: row for row in found if not row["name"]}
    assert list(kinds) == list(profile_step.KINDS)
    names = {row["name"] for row in found if row["kind"] == "s3h"}
    assert "s3h::render_views" in names
    work = [float(row["share_of_work"]) for row in kinds.values()]
    assert sum(work) == pytest.approx(1, abs=1e-3)
    assert kinds["convolution"]["share_of_work"] == str(max(work))
    wall = [float(row["share_of_wall"]) for row in kinds.values()]
    assert sum(wall) == pytest.approx(1, abs=1e-2)
    assert float(kinds["optimiser"]["ms_per_step"]) > 0
    assert "cifar100-lt/hybrid-psc" in capsys.readouterr().out


def test_kernels_of_a_trace_are_added_up():
    def event(name, start, length, cat="kernel"):
        return {"name": name, "cat": cat, "ts": start, "dur": length}

    render = "void s3h::cuda::(anonymous namespace)::render<float>(s3h::cuda::X)"
    events = [
        event(render, 100, 50),
        event(render, 200, 30),
        event("sm90_xmma_fprop_implicit_gemm_bf16", 120, 60),
        event("Memcpy HtoD (Pinned -> Device)", 300, 10, "gpu_memcpy"),
        event("cudaLaunchKernel", 0, 1000, "cuda_runtime"),
        event("Optimizer.step#SGD.step", 0, 1000, "gpu_user_annotation"),
        {"name": "process_name", "ph": "M"},
    ]
    work, busy = profile_step.device_work(events)
    assert work["s3h::render"] == profile_step.Work(2, pytest.approx(0.08))
    assert len(work) == 3
    # 100 .. 180, 200 .. 230, 300 .. 310
    assert busy == pytest.approx(0.12)
    found = profile_step.Found(work, busy, wall=0.2)
    entries = profile_step.entries(found, profile_step.KERNELS)
    listed = {kind: entry.milliseconds for kind, name, entry in entries if not name}
    assert listed["s3h"] == pytest.approx(0.08)
    assert listed["convolution"] == pytest.approx(0.06)
    assert listed["memory copies"] == pytest.approx(0.01)
    assert listed["idle"] == pytest.approx(0.08)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("_ZN3s3h4cuda12_GLOBAL__N_16renderE", "s3h"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NHWC<__nv_bfloat16>", "batch norm"),
        ("void cudnn::ops::nchwToNhwcKernel<float>", "convolution"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "matrix product"),
        ("nvjet_hsh_128x8_64x12_4x1_v_bz_TNT", "matrix product"),
        (
            "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::"
            "native::(anonymous namespace)::FusedSgdMathFunctor<float>>",
            "optimiser",
        ),
        (
            "void at::native::batch_norm_backward_reduce_channels_last_kernel<4>",
            "batch norm",
        ),
        (
            "void at::native::elementwise_kernel<128, 4, at::native::"
            "direct_copy_kernel_cuda(at::TensorIteratorBase&)>",
            "memory copies",
        ),
        ("void at::native::vectorized_elementwise_kernel<4>", "elementwise"),
        ("Memset (Device)", "memory copies"),
        ("somebody's", "other"),
    ],
)
def test_a_kernel_is_known_by_its_name(name, kind):
    assert profile_step.kind_of(name, profile_step.KERNELS) == kind
