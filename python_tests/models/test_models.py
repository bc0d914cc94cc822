import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

from s3h_ext.models import (
    Backbone,
    CosineClassifier,
    GroupedClassifier,
    LinearClassifier,
    MLPHead,
    ResNet,
    build_model,
    unit_rows,
)


@pytest.mark.parametrize(("classes", "parameters"), [(10, 464_154), (100, 470_004)])
def test_resnet32_has_the_published_number_of_parameters(classes, parameters):
    model = build_model("resnet32", classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_feature_map_pools_to_the_features():
    backbone = build_model("resnet20", 10).backbone.eval()
    images = torch.randn(3, 3, 32, 32)
    feature_map = backbone.feature_map(images)
    assert feature_map.shape == (3, 64, 8, 8)
    torch.testing.assert_close(backbone(images), feature_map.mean((2, 3)))


# torchvision's published numbers, less the classifier's 2048 * 1000 + 1000.
@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet50", 25_557_032), ("resnext50-32x4d", 25_028_904)]
)
def test_networks_for_photographs_have_the_published_size_and_names(name, parameters):
    backbone = build_model(name, 2).backbone
    assert sum(p.numel() for p in backbone.parameters()) + 2_049_000 == parameters
    names = dict(backbone.named_parameters())
    assert names["layer1.0.downsample.1.bias"].shape == (256,)
    width = {"resnet50": (512, 512, 3, 3), "resnext50-32x4d": (1024, 32, 3, 3)}
    assert names["layer4.2.conv2.weight"].shape == width[name]
    # (3, 4, 6, 3) blocks of three, four shortcuts and the first one.
    assert sum(n.endswith("weight") and p.dim() == 4 for n, p in names.items()) == 53


def test_resnet50_strides_in_the_3x3_convolutions():
    backbone = build_model("resnet50", 2).backbone.eval()
    strides = {
        name: module.stride[0]
        for name, module in backbone.named_modules()
        if isinstance(module, torch.nn.Conv2d) and module.stride[0] != 1
    }
    parts = ("conv2", "downsample.0")
    stages = [f"layer{stage}.0.{part}" for stage in (2, 3, 4) for part in parts]
    assert strides == dict.fromkeys(["conv1", *stages], 2)
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        feature_map = backbone.feature_map(images)
        assert feature_map.shape == (2, 2048, 2, 3)
        torch.testing.assert_close(backbone(images), feature_map.mean((2, 3)))


def test_shortcut_is_option_a():
    # With both branches' convolutions at zero a block is its shortcut after the ReLU:
    # every second pixel, the new channels zero, half of them before and half after.
    block = build_model("resnet20", 10).backbone.layer2[0].eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 16, 8, 8)
    out = block(x)
    assert out.shape == (2, 32, 4, 4)
    torch.testing.assert_close(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].abs().max() == 0
    assert out[:, 24:].abs().max() == 0


def test_cosine_classifier_is_scaled_and_ignores_lengths():
    classifier, features = CosineClassifier(8, 5, scale=16.0), torch.randn(4, 8)
    logits = classifier(features)
    cosines = F.cosine_similarity(features[:, None], classifier.weight[None], dim=2)
    torch.testing.assert_close(logits, 16.0 * cosines)
    with torch.no_grad():
        classifier.weight.mul_(3.0)
    torch.testing.assert_close(classifier(7.0 * features), logits)


def split_or_not(classifier, split):
    if not split:
        return classifier
    grouped = GroupedClassifier(classifier, torch.tensor([0, 3, 4, 5, 6, 8]))
    grouped.split_(0.1)
    return grouped


@pytest.mark.parametrize("split", [False, True])
def test_cosine_classifiers_work_in_float32_under_autocast(split):
    classifier = split_or_not(CosineClassifier(64, 5), split)
    features = torch.randn(100, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        logits = classifier(features)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(logits, classifier(features.float()))


@pytest.mark.parametrize("split", [False, True])
def test_linear_classifiers_evaluate_in_float32_under_autocast(split):
    """In bfloat16 the highest logit of an image may come twice."""
    classifier = split_or_not(LinearClassifier(64, 5), split).eval()
    features = torch.randn(100, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        logits = classifier(features)
        assert torch.is_autocast_enabled("cpu")
    assert logits.dtype == torch.float32
    assert torch.equal(logits, classifier(features.float()))
    classifier.train()
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(logits, classifier(features))


@pytest.mark.parametrize("split", [False, True])
def test_an_exported_cosine_classifier_is_plain_operations(split):
    classifier = split_or_not(CosineClassifier(64, 5), split)
    features = torch.randn(4, 64)
    program = torch.export.export(classifier, (features,))
    assert not any("autocast" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(features), classifier(features))


def test_mlp_head_has_one_hidden_layer():
    head = MLPHead(64, 32, 16)
    assert head(torch.randn(2, 64)).shape == (2, 16)
    assert sum(p.numel() for p in head.parameters()) == 64 * 32 + 32 + 32 * 16 + 16


@pytest.mark.parametrize(
    ("backbone", "classifier", "message"),
    [
        ("resnet33", "linear", "backbone: expected one of .* got 'resnet33'"),
        ("resnet32", "sine", "classifier: expected one of .* got 'sine'"),
    ],
)
def test_unknown_names_are_refused(backbone, classifier, message):
    with pytest.raises(ValueError, match=message):
        build_model(backbone, 10, classifier=classifier)


def test_bad_scale_is_refused():
    with pytest.raises(ValueError, match="scale: expected a finite number > 0, got -1"):
        CosineClassifier(8, 5, scale=-1)


def normalised(layer, x):
    """A batch norm in evaluation."""
    parts = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    return F.batch_norm(x, *parts, eps=layer.eps)


def bottleneck(block, x):
    """He et al., CVPR 2016, with the stride in the 3 x 3 convolution."""
    y = F.relu(normalised(block.bn1, F.conv2d(x, block.conv1.weight)))
    second = {"stride": block.conv2.stride, "padding": 1, "groups": block.conv2.groups}
    y = F.relu(normalised(block.bn2, F.conv2d(y, block.conv2.weight, **second)))
    y = normalised(block.bn3, F.conv2d(y, block.conv3.weight))
    if block.downsample is not None:
        convolution, norm = block.downsample
        stride = convolution.stride
        x = normalised(norm, F.conv2d(x, convolution.weight, stride=stride))
    return F.relu(y + x)


def test_the_networks_of_photographs_are_their_equation():
    network = ResNet(blocks=(1, 2, 1, 1)).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.bias)
    images = torch.randn(2, 3, 64, 64)
    y = F.conv2d(images, network.conv1.weight, stride=2, padding=3)
    y = F.max_pool2d(F.relu(normalised(network.bn1, y)), 3, 2, 1)
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in stage:
            y = bottleneck(block, y)
    torch.testing.assert_close(network.feature_map(images), y, rtol=1e-4, atol=1e-4)


def test_what_a_grouped_classifier_cannot_take_is_refused():
    with pytest.raises(ValueError, match=r"^offsets: .* from 0 on, got \[1, 3, 5\]"):
        GroupedClassifier(LinearClassifier(8, 2), torch.tensor([1, 3, 5]))
    plain = LinearClassifier(8, 2, bias=False)
    with pytest.raises(ValueError, match="^classifier: expected a linear one with a b"):
        GroupedClassifier(plain, torch.tensor([0, 3, 4]))


def test_a_backbone_has_to_have_a_feature_map():
    with pytest.raises(TypeError, match="feature_map"):
        Backbone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unit_rows_keep_16_bits_on_a_gpu_alone(dtype):
    rows = torch.randn(5, 7).to(dtype)
    assert torch.equal(unit_rows(rows), F.normalize(rows.float(), dim=1))
    with FakeTensorMode():
        assert unit_rows(torch.empty(5, 7, dtype=dtype, device="cuda:0")).dtype == dtype
