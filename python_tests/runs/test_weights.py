"""Weights with torchvision's names."""

import pytest
import torch

from s3h_ext.models import ResNet, build_backbone
from s3h_ext.runs.weights import load_weights

BLOCKS = (1, 1, 1, 1)


def torchvision_names(blocks=BLOCKS, width=64):
    """The names and shapes of torchvision's ResNet, written down from its paper."""

    def norm(name, planes):
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.{part}", (planes,)
        yield f"{name}.num_batches_tracked", ()

    yield "conv1.weight", (64, 3, 7, 7)
    yield from norm("bn1", 64)
    before = 64
    for stage, count in enumerate(blocks, start=1):
        planes = width << (stage - 1)
        for block in range(count):
            name = f"layer{stage}.{block}"
            yield f"{name}.conv1.weight", (planes, before, 1, 1)
            yield from norm(f"{name}.bn1", planes)
            yield f"{name}.conv2.weight", (planes, planes, 3, 3)
            yield from norm(f"{name}.bn2", planes)
            yield f"{name}.conv3.weight", (4 * planes, planes, 1, 1)
            yield from norm(f"{name}.bn3", 4 * planes)
            if block == 0:
                yield f"{name}.downsample.0.weight", (4 * planes, before, 1, 1)
                yield from norm(f"{name}.downsample.1", 4 * planes)
            before = 4 * planes
    yield "fc.weight", (1000, before)
    yield "fc.bias", (1000,)


def generated(blocks=BLOCKS):
    return {
        name: torch.tensor(7) if name.endswith("tracked") else torch.randn(shape)
        for name, shape in torchvision_names(blocks)
    }


def test_resnet50_has_the_names_of_torchvision():
    names = {n for n, _ in torchvision_names((3, 4, 6, 3)) if not n.startswith("fc.")}
    assert set(build_backbone("resnet50").state_dict()) == names


@pytest.mark.parametrize("form", ["plain", "parallel", "nested", "old"])
def test_a_generated_state_is_taken_over(tmp_path, form):
    state, backbone = generated(), ResNet(blocks=BLOCKS)
    written = state
    if form == "parallel":
        written = {f"module.{name}": value for name, value in state.items()}
    elif form == "nested":
        written = {"epoch": 3, "state_dict": state}
    elif form == "old":
        written = {n: v for n, v in state.items() if not n.endswith("tracked")}
    torch.save(written, tmp_path / "weights.pth")
    load_weights(backbone, tmp_path / "weights.pth")
    for name, value in backbone.state_dict().items():
        if form != "old" or not name.endswith("tracked"):
            assert torch.equal(value, state[name]), name


def test_what_does_not_fit_is_refused(tmp_path):
    backbone, path = ResNet(blocks=BLOCKS), tmp_path / "weights.pth"
    with pytest.raises(FileNotFoundError, match="model.weights: expected a file"):
        load_weights(backbone, path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="weights.pth cannot be read"):
        load_weights(backbone, path)
    torch.save({"lr": 0.1}, path)
    with pytest.raises(ValueError, match="expected a dictionary of tensors"):
        load_weights(backbone, path)
    state = generated()
    del state["layer2.0.bn3.bias"]
    torch.save(state, path)
    with pytest.raises(ValueError, match="(?s)does not fit.*layer2.0.bn3.bias"):
        load_weights(backbone, path)
