"""Video networks compute what they should, clip by clip and window by window, and padding has no say in it."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from networks import CLASSES, SIZE, attentive, expected, normalized, residual, tiny, tiny_model, videos
from torch import nn

from dynpool import dynamic_image, to_image
from dynpool.models import Backbone, ModelConfig, build
from dynpool.models.frames import FramePool
from dynpool.models.layers import Forked
from dynpool.models.rows import Rows

NAN = float("nan")

MODELS = {
    "dynamic image": {},
    "dynamic image, eq. (4)": {"time_average": False},
    "dynamic image, identity": {"nonlinearity": "identity"},
    "dynamic image, not stretched": {"rescale": "difference"},
    "dynamic image, exact": {"pool": "exact"},
    "dynamic image, mean": {"pool": "mean"},
    "dynamic image, max": {"pool": "max"},
    "dynamic image, middle": {"pool": "middle"},
    "dynamic images": {"window": 3, "stride": 2},
    "dynamic images, gaps": {"window": 2, "stride": 3},
    "dynamic images, no overlap, averaged": {"window": 3, "video_pool": "mean"},
    "dynamic images, pooled at fc1": {"window": 3, "stride": 2, "video_layer": "fc1"},
    "dynamic images, exact": {"window": 3, "stride": 2, "pool": "exact"},
    "dynamic images given": {"pool": "none"},
    "dynamic map, conv1": {"layer": "conv1"},
    "dynamic map, relu2": {"layer": "relu2"},
    "dynamic map, fc1": {"layer": "fc1"},
    "dynamic map, scores": {"layer": "fc2"},
    "dynamic map, exact": {"layer": "relu2", "pool": "exact"},
    "dynamic map, eq. (4), difference": {"layer": "relu1", "time_average": False, "rescale": "difference"},
    "dynamic map, root": {"layer": "relu2", "nonlinearity": "sqrt"},
    "dynamic map, mean": {"layer": "relu1", "pool": "mean"},
    "dynamic map, max": {"layer": "relu1", "pool": "max"},
    "dynamic map, middle": {"layer": "relu1", "pool": "middle"},
    "dynamic maps": {"layer": "relu1", "window": 3, "stride": 2},
    "dynamic maps at fc1": {"layer": "fc1", "window": 3, "stride": 2},
    "dynamic maps, exact": {"layer": "relu1", "window": 3, "stride": 2, "pool": "exact"},
    "static": {"kind": "static"},
    "static, every second": {"kind": "static", "every": 2},
    "static, middle": {"kind": "static", "frames": "middle"},
    "two streams": {"kind": "two_stream"},
    "two streams, windows, middle": {"kind": "two_stream", "window": 3, "stride": 2, "frames": "middle"},
    "two streams, branch at the input": {"kind": "two_stream", "branch": "input"},
    "two streams, branch at relu1": {"kind": "two_stream", "branch": "relu1"},
    "two streams, branch at conv2, windows": {"kind": "two_stream", "branch": "conv2", "window": 3, "stride": 2},
    "two streams, branch at fc1": {"kind": "two_stream", "branch": "fc1", "every": 3},
    "two streams, branch at relu2, middle": {"kind": "two_stream", "branch": "relu2", "frames": "middle"},
    "two streams, maps": {"kind": "two_stream", "layer": "relu1"},
}
each_model = pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
LENGTHS = [7, 4, 1, 6]


def different(model: nn.Module) -> nn.Module:
    """The second tail of a fork begins as a copy of the first; a test that mixed them up would not notice."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


@each_model
def test_scores_and_gradients_are_those_of_each_clip_by_itself(options):
    model = different(tiny_model(**options)).double().eval()
    lengths = LENGTHS if options.get("pool") != "exact" else [7, 4, 5, 6]
    video = videos(*lengths, fill=NAN)
    scores = model(video, torch.tensor(lengths))
    assert scores.shape == (4, CLASSES)
    want = expected(model, video, lengths)
    # float64 sums of some thousand terms; the exact solver stops at a gap of 1e-8
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if options.get("pool") == "exact" else {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(scores, want, **tolerance)

    weights = torch.randn(4, CLASSES, dtype=torch.float64)
    parameters = list(model.parameters())
    got = torch.autograd.grad((scores * weights).sum(), parameters)
    if options.get("pool") != "exact":
        for a, b in zip(got, torch.autograd.grad((want * weights).sum(), parameters), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    assert all(g.isfinite().all() and (g != 0).any() for g in got)


@each_model
def test_a_batch_of_whole_clips_needs_no_lengths(options):
    model = tiny_model(**options).double().eval()
    video = videos(5, 5)
    assert torch.equal(model(video), model(video, [5, 5]))
    torch.testing.assert_close(model(video)[1:], model(video[1:]), rtol=1e-12, atol=1e-12)


@each_model
def test_no_batch_norm_sees_padding(options):
    models = [tiny_model(**options).train()]
    models += [copy.deepcopy(models[0]) for _ in range(2)]
    long = torch.cat([videos(*LENGTHS, fill=NAN, dtype=torch.float32), torch.full((4, 2, 3, SIZE, SIZE), NAN)], 1)
    batches = [videos(*LENGTHS, fill=fill, dtype=torch.float32) for fill in (0.0, NAN)] + [long]
    scores = [model(video, LENGTHS) for model, video in zip(models, batches, strict=True)]
    for model, score in zip(models[1:], scores[1:], strict=True):
        # to rounding: how a library adds up a product may depend on where its operands begin
        torch.testing.assert_close(score, scores[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.state_dict(), models[0].state_dict(), rtol=1e-4, atol=1e-5)


@each_model
def test_bytes_give_what_floats_give(options):
    model = tiny_model(**options).eval()
    video = videos(7, 4, dtype=torch.uint8)
    want = copy.deepcopy(model).double()(video.double(), [7, 4])
    torch.testing.assert_close(model(video, [7, 4]).double(), want, rtol=1e-3, atol=1e-4)  # float32 through ten layers


@each_model
def test_features_enter_the_last_layer(options):
    model = different(tiny_model(**options)).eval()
    video = videos(7, 4, dtype=torch.float32, fill=NAN)
    features = model.features(video, [7, 4])
    streams = 2 if model.config.kind == "two_stream" else 1
    assert features.shape == (2, 11 * streams)
    if options.get("layer") == "fc2":
        return  # frames have features, of which the maximum is taken; scores are pooled
    heads = {1: lambda m: [m.backbone.fc2], 2: heads_of}[streams](model)
    scores = [head(part) for head, part in zip(heads, features.split(11, 1), strict=True)]
    torch.testing.assert_close(sum(scores) / streams, model(video, [7, 4]), rtol=1e-4, atol=1e-5)


def heads_of(model: nn.Module) -> list[nn.Module]:
    if hasattr(model, "backbone"):
        return [model.backbone.fc2.static, model.backbone.fc2.dynamic]
    return [model.static.backbone.fc2, model.dynamic.backbone.fc2]


@pytest.mark.parametrize("branch", ["patches", "encoder"])
@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "no gradients"])
def test_both_streams_have_attention_of_their_own(branch, gradients):
    """With tuples, masks and options; without gradients, nn.TransformerEncoderLayer computes past the layers in it."""
    config = ModelConfig("two_stream", CLASSES, "custom", size=SIZE, branch=branch, every=2)
    model = different(build(config, backbone=attentive())).double().eval()
    video = videos(7, 4, 1, fill=NAN)
    with torch.set_grad_enabled(gradients):
        scores = model(video, [7, 4, 1])
    torch.testing.assert_close(scores, expected(model, video, [7, 4, 1]), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("frames", [14, 15, 16])
@pytest.mark.parametrize("branch", ["patches", "encoder"])
def test_a_mask_as_large_as_the_batch_has_no_rows(branch, frames):
    """16 tokens, for which attention has a mask [16, 16]; `frames` rows of the static stream and one of the other."""
    config = ModelConfig("two_stream", CLASSES, "custom", size=SIZE, branch=branch)
    model = different(build(config, backbone=attentive())).double().eval()
    video = videos(frames)
    torch.testing.assert_close(model(video), expected(model, video, [frames]), rtol=1e-9, atol=1e-10)


def test_a_forked_layer_answers_for_itself_but_not_for_its_weights():
    layer = build(
        ModelConfig("two_stream", CLASSES, "custom", size=SIZE, branch="patches"), backbone=attentive()
    ).backbone.attention.layer
    assert isinstance(layer, Forked)
    assert (layer.batch_first, layer.embed_dim) == (True, 8)
    with pytest.raises(AttributeError, match=r"'in_proj_weight' twice: static\.in_proj_weight and dynamic"):
        layer.in_proj_weight  # noqa: B018
    with pytest.raises(AttributeError, match="'MultiheadAttention' object has no attribute 'nothing'"):
        layer.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("backbone", "branch", "layer", "whole"),
    [
        (tiny, "relu2", "fc1.static", "fc1"),
        (attentive, "patches", "encoder.layers.0.static.linear1", "encoder.layers.0"),
    ],
)
def test_features_of_half_a_forked_layer(backbone, branch, layer, whole):
    model = build(ModelConfig("two_stream", CLASSES, "custom", size=SIZE, branch=branch), backbone=backbone())
    with pytest.raises(ValueError, match=f"layer must be that of both streams, '{whole}', .* got '{layer}'"):
        model.features(videos(3, dtype=torch.uint8), layer=layer)


def test_features_of_any_layer_are_pooled_over_the_video():
    model = tiny_model(pool="none").double().eval()
    video = videos(4, 3, fill=NAN)
    features = model.features(video, [4, 3], "relu1")
    images = torch.stack([normalized(model, frame) for frame in video[1, :3]])
    assert features.shape == (2, 5 * 8 * 8)
    maps = model.backbone.conv1(images).clamp(min=0)
    torch.testing.assert_close(features[1], maps.flatten(1).amax(0), rtol=1e-12, atol=1e-12)
    assert model.features(video, [4, 3], "conv1").min() < 0  # the ReLU after it works in place
    with pytest.raises(ValueError, match="'nowhere'"):
        model.features(video, [4, 3], "nowhere")


def test_dynamic_image_is_the_picture_that_dynamic_image_gives():
    seen = []
    model = tiny_model(mean=[0, 0, 0], std=[1, 1, 1]).eval()
    model.backbone.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    video = videos(9, dtype=torch.uint8)
    model(video)
    assert (seen[0][0].round() - dynamic_image(video[0]).float()).abs().max() <= 1  # where a half is rounded
    assert (seen[0][0].round() == dynamic_image(video[0])).float().mean() > 0.999


@pytest.mark.parametrize("pool", ["approx", "exact"])
@pytest.mark.parametrize("options", [{}, {"layer": "relu1"}, {"window": 3, "stride": 2}], ids=str)
def test_a_still_video_is_grey_and_not_noise(pool, options):
    model = tiny_model(pool=pool, mean=[0, 0, 0], std=[1, 1, 1], **options).train()
    seen = []
    layer = model.backbone.conv2 if "layer" in options else model.backbone.conv1
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    still = videos(1, dtype=torch.uint8).expand(2, 50, -1, -1, -1)
    model(still).sum().backward()
    if "layer" in options:  # maps of frames of size 100; what remains is rounding
        assert seen[0].abs().max() < 1
    else:
        assert to_image(seen[0]).shape[1] == 3
        assert (seen[0] - 127.5).abs().max() < 3
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_one_frame_has_no_order():
    model = tiny_model(mean=[0, 0, 0], std=[1, 1, 1]).eval()
    grey = model.backbone(torch.full((1, 3, SIZE, SIZE), 127.5))
    torch.testing.assert_close(model(videos(1, dtype=torch.uint8)), grey)


def test_state_keeps_the_names_of_the_backbone():
    names = [f"backbone.{name}" for name in tiny().state_dict()]
    assert list(tiny_model(layer="relu1", window=3).state_dict()) == names
    fork = tiny_model("two_stream", branch="relu2").state_dict()
    assert [name for name in fork if "conv" in name or "norm" in name] == [
        n for n in names if "conv" in n or "norm" in n
    ]
    assert {"backbone.fc1.static.weight", "backbone.fc1.dynamic.weight"} < set(fork)


def test_a_model_takes_a_copy_of_its_backbone():
    backbone = tiny()
    before = copy.deepcopy(backbone.state_dict())
    model = build(ModelConfig("dynamic", 8, "custom", layer="relu1", size=SIZE), backbone=backbone)
    different(model)
    assert backbone.fc2.out_features == CLASSES
    assert not backbone.relu1._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert model(videos(3, dtype=torch.uint8)).shape == (1, 8)


def test_a_classifier_without_offsets_stays_so():
    backbone = tiny()
    backbone.fc2 = nn.Linear(11, CLASSES, bias=False)
    head = build(ModelConfig("dynamic", 8, "custom"), backbone=backbone).backbone.fc2
    assert (head.out_features, head.bias) == (8, None)


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_any_dropout_takes_the_probability(kind):
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), kind(0.1), nn.Linear(8, CLASSES))
    model = build(ModelConfig("dynamic", CLASSES, "custom", dropout=0.75), backbone=backbone)
    assert model.backbone[2].p == 0.75
    assert not model.backbone[3]._forward_pre_hooks


def test_the_classifier_stays_where_its_classes_do():
    backbone = tiny()
    model = build(ModelConfig("dynamic", CLASSES, "custom"), backbone=backbone)
    assert torch.equal(model.backbone.fc2.weight, backbone.fc2.weight)


def test_a_backbone_says_what_its_input_is():
    base = Backbone(tiny(), mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), size=SIZE, head="fc1")
    model = build(ModelConfig("dynamic", 6, "custom", std=(2, 2, 2)), backbone=base)
    assert (model.mean, model.std) == ((1, 2, 3), (2, 2, 2))
    with pytest.raises(ValueError, match=r"std must have as many numbers as mean, 3, got \[2.0\]"):
        build(ModelConfig("dynamic", 6, "custom", std=(2,)), backbone=base)
    with pytest.raises(TypeError, match=r"mean must be a sequence of numbers, one a channel, got 127.5"):
        Backbone(tiny(), mean=127.5)
    with pytest.raises(
        TypeError, match=r"backbone must be a module or a Backbone, got 'resnet': a name goes into Model"
    ):
        build(ModelConfig("dynamic", 6, "custom"), backbone="resnet")
    assert (model.size, model.head, model.backbone.fc1.out_features) == (SIZE, "fc1", 6)


def test_dropout_of_a_backbone_without_stands_before_its_last_layer():
    model = tiny_model(dropout=0.5).eval()
    assert list(model.state_dict()) == list(tiny_model().state_dict())
    video = videos(5, dtype=torch.uint8)
    kept = model.features(video)
    for module in model.modules():
        module.training = not isinstance(module, nn.BatchNorm2d)
    dropped = torch.cat([model.features(video) for _ in range(200)])
    assert ((dropped == 0) | torch.isclose(dropped, 2 * kept)).all()
    shares = (dropped == 0).double().mean(0)[kept[0] > 0]
    assert len(shares) > 3
    assert (shares - 0.5).abs().max() < 5 * 0.5 / 200**0.5
    fork = tiny_model("two_stream", branch="relu1", dropout=0.5)
    inputs = torch.ones(1, 11)
    assert all((head(inputs) != head(inputs)).any() for head in heads_of(fork))


@each_model
def test_copies_and_pickles_are_models_of_their_own(options):
    model = different(tiny_model(**options)).eval()
    video = videos(7, 4, dtype=torch.uint8)
    want = model(video, [7, 4])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(video, [7, 4]), want)
        different(other)
        assert not torch.equal(other(video, [7, 4]), want)
    assert torch.equal(model(video, [7, 4]), want)


TRAINED = [
    {},
    {"window": 3, "stride": 2},
    {"layer": "relu1"},
    {"layer": "relu1", "pool": "exact"},
    {"kind": "static"},
    {"kind": "two_stream", "branch": "relu1"},
    {"kind": "two_stream"},
]


@pytest.mark.parametrize("options", TRAINED, ids=str)
def test_four_clips_are_learned(options):
    model = tiny_model(classes=4, **options).train()
    video, labels = videos(6, 6, 5, 4, dtype=torch.uint8), torch.arange(4)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(video, [6, 6, 5, 4]), labels).backward()
        optimizer.step()
    assert model.train()(video, [6, 6, 5, 4]).argmax(1).tolist() == [0, 1, 2, 3]


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("video", "lengths", "error", "message"),
    [
        (torch.zeros(2, 3, 3, 16, 16, dtype=torch.int64), None, TypeError, "uint8 or floating Tensor, got torch.int64"),
        ([1], None, TypeError, "video must be a uint8 or floating Tensor, got list"),
        (np.zeros((2, 3, 3, 16, 16), np.uint8), None, TypeError, "uint8 or floating Tensor, got ndarray"),
        (torch.zeros(3, 3, 16, 16), None, ValueError, r"shape \[B, T, 3, H, W\], got \[3, 3, 16, 16\]"),
        (torch.zeros(1, 2, 1, 16, 16), None, ValueError, r"got \[1, 2, 1, 16, 16\]"),
        (torch.zeros(1, 0, 3, 16, 16), None, ValueError, "T = 0"),
        (torch.zeros(2, 3, 3, 16, 16), [3], ValueError, r"lengths must have shape \[B\] = \[2\]"),
        (torch.zeros(2, 3, 3, 16, 16), [3, 4], ValueError, "between 1 and T = 3, got 4"),
        (torch.zeros(2, 3, 3, 16, 16), [3, 0], ValueError, "between 1 and T = 3, got 0"),
    ],
)
def test_bad_videos(video, lengths, error, message):
    with pytest.raises(error, match=message):
        tiny_model()(video, lengths)


def test_after_an_error_the_backbone_goes_by_itself():
    model = tiny_model("two_stream", branch="relu1").eval()
    images = torch.rand(4, 3, SIZE, SIZE)
    want = model.backbone(images)

    def fails(module, args):
        raise ArithmeticError

    for what in (model, model.features):
        handle = model.backbone.fc1.register_forward_pre_hook(fails)
        with pytest.raises(ArithmeticError):
            what(videos(4, dtype=torch.uint8))
        handle.remove()
        assert torch.equal(model.backbone(images), want)


class Remembers(nn.Module):
    """Keeps to the batch size of its input."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.fc(self.pool(self.conv(x)).view(x.shape[0], -1))


class Named(nn.Module):
    """Returns its scores by name."""

    def __init__(self):
        super().__init__()
        self.network = tiny()

    def forward(self, x):
        return {"logits": self.network(x)}


def test_scores_by_name_are_no_scores():
    model = build(ModelConfig("static", CLASSES, "custom"), backbone=Named())
    with pytest.raises(ValueError, match=r"backbone must return its scores, .* got dict"):
        model(videos(2, dtype=torch.uint8))


class Turned(nn.Module):
    def forward(self, x):
        return x.transpose(0, 1)


def sequences_first():
    """Attention to tokens [S, N, C]."""
    layer = nn.TransformerEncoderLayer(8, 2, 12)
    network = attentive()
    network.encoder = nn.Sequential(Turned(), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), Turned())
    return network


class Odd(nn.Module):
    """Has layers after which nothing can be pooled."""

    def __init__(self):
        super().__init__()
        self.pair = Pair()
        self.conv = nn.Conv2d(3, 4, 3)
        self.unused = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.fc(self.conv(self.pair(x)[0]).relu().mean((2, 3)))


class Viewing(nn.Sequential):
    """A network that looks at its maps as they lie in memory."""

    def forward(self, x):
        maps = self[0](x)
        return self[1](maps.view(-1, maps[0].numel()))


@pytest.mark.parametrize(
    "options", [{}, {"pool": "mean"}, {"kind": "static"}, {"window": 2, "video_layer": "0"}], ids=str
)
def test_frames_may_lie_in_memory_as_decoders_write_them(options):
    config = ModelConfig(**{"kind": "dynamic", "num_classes": 3, "backbone": "custom", "size": 8, **options})
    backbone = Viewing(nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 3))
    model = build(config, backbone=backbone).eval()
    video = torch.randint(0, 256, (2, 5, 8, 8, 3), dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    for lengths in (None, [5, 3]):
        assert torch.equal(model(video, lengths), model(video.contiguous(), lengths))


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        (tiny, {"layer": "conv9"}, "layer must be a named layer of Sequential, got 'conv9'; it has: conv1, relu1"),
        (tiny, {"kind": "two_stream", "branch": "x"}, "branch must be a named layer"),
        (tiny, {"window": 3, "video_layer": "x"}, "video_layer must be a named layer"),
        (tiny, {"window": 3, "layer": "fc1", "video_layer": "pool"}, "must not run before the layer 'fc1'"),
        (tiny, {"layer": "relu1", "mean": [0] * 4, "std": [1] * 4}, "cannot take images of 16 × 16"),
        (
            Remembers,
            {"layer": "conv"},
            r"at layer = 'conv', .* or because a forward keeps to .* `flatten\(1\)`\): ",
        ),
        (Remembers, {"window": 3}, "cannot be pooled at video_layer = 'pool'"),
        (Remembers, {"window": 2, "stride": 3}, "cannot be pooled at video_layer = 'pool'"),
        (residual, {"layer": "block.inner"}, "layer = 'block.inner', perhaps because a skip connection goes around it"),
        (residual, {"layer": "block.inner"}, "; layer = 'block', which holds it, can be: "),
        (residual, {"kind": "two_stream", "branch": "block.inner"}, "; branch = 'block', which holds it, can be"),
        (residual, {"kind": "two_stream", "branch": "block.inner", "frames": "middle"}, "branch = 'block.inner'"),
        (residual, {"kind": "two_stream", "branch": "block.inner", "every": 2}, "branch = 'block.inner'"),
        (residual, {"window": 2, "video_layer": "block.inner"}, "; video_layer = 'block', which holds it, can be"),
        (Named, {"layer": "network.relu1"}, "must return its scores, a Tensor .* got dict: wrap it in a module"),
        (
            sequences_first,
            {"kind": "two_stream", "branch": "patches"},
            r"inside: after a branch, TransformerEncoderLayer must see rows \[N, ...\] = \[3, ...\], got \[16, 3, 8\]",
        ),
        (
            attentive,
            {"kind": "two_stream", "branch": "patches", "window": 2, "video_layer": "encoder.layers.1.linear2"},
            "video_layer must be a named layer of Sequential, got 'encoder.layers.1.linear2'",
        ),
        (Odd, {"layer": "pair"}, "must put out maps .* 'pair' puts out tuple"),
        (Odd, {"layer": "unused"}, "must run once in an image, but 'unused' runs 0 times"),
        (Odd, {"window": 3}, "video_layer must be given: Odd has no spatial pooling layer"),
        (lambda: nn.Conv2d(3, 4, 3), {}, "must have a linear layer"),
        (lambda: Backbone(tiny(), head="conv1"), {}, "head must be a linear layer, got 'conv1', a Conv2d"),
        (
            tiny,
            {"checkpointing": True},
            "needs a backbone with blocks of layers, and Sequential has none without 'fc2'",
        ),
        (tiny, {"weights": "default"}, "load the module's own beforehand"),
        (lambda: None, {}, "'custom' stands for a module"),
    ],
)
def test_bad_backbones(backbone, options, message):
    with pytest.raises(ValueError, match=message):
        build(
            ModelConfig(**{"kind": "dynamic", "num_classes": 4, "backbone": "custom", "size": 16, **options}),
            backbone=backbone(),
        )


# --- windows ---------------------------------------------------------------------------------------------------------


def gathered(pool: FramePool, rows: torch.Tensor, frames: Rows) -> torch.Tensor:
    """Windows whose frames are copied, each pooled by itself."""
    windows = frames.windows(pool.window, pool.stride)
    positions = torch.arange(windows.size)[:, None] * pool.stride + torch.arange(pool.window)
    clips = frames.select(rows, positions[None], windows).unflatten(0, (-1, pool.window))
    return pool._pool(clips, None).to(rows.dtype)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("window", "stride"), [(1, 1), (3, 2), (2, 3), (5, 5), (4, 1)])
@pytest.mark.parametrize("options", [{}, {"layer": "a"}, {"layer": "a", "rescale": "difference"}], ids=str)
def test_windows_are_those_of_copied_frames(options, window, stride, packed):
    pool = FramePool(ModelConfig("dynamic", CLASSES, window=window, stride=stride, **options))
    for size in range(1, 12):
        for counts in (None, torch.tensor([size, max(1, size - 2), 1])):
            video = torch.rand(3, size, 2, 5, 3) * 200
            if counts is not None:
                video[~Rows(3, size, counts).present(video.device)] = NAN
            frames = Rows(3, size, counts, packed)
            rows = frames.pack(video)
            got, windows = pool(rows, frames)
            want = gathered(pool, rows, frames)
            if windows.dense:
                present = windows.present(got.device).flatten()
                got, want = got[present], want[present]
            assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_maps_are_not_all_copied_in_full(dtype):
    pool = FramePool(ModelConfig("dynamic", CLASSES, layer="a"))
    maps = torch.rand(100, 5, 3, 3).to(dtype)
    want = pool(maps.float(), Rows(4, 25))[0]
    with torch.profiler.profile(record_shapes=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        got = pool(maps, Rows(4, 25))[0]
    torch.testing.assert_close(got, want.to(dtype))
    copies = [e.input_shapes[0] for e in profile.events() if e.name == "aten::copy_"]
    assert max(map(math.prod, copies)) <= 8 * 45


def test_windows_copy_no_frames():
    """But those of the last window: 10 frames of 100, where windows hold 910."""
    pool = FramePool(ModelConfig("dynamic", CLASSES, window=10, stride=1))
    video = torch.randint(0, 256, (1, 100, 3, 8, 8), dtype=torch.uint8)
    with torch.profiler.profile(record_shapes=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        pool.video(video, Rows(1, 100))
    copies = [e.input_shapes for e in profile.events() if e.name == "aten::index_select"]
    assert [shapes[2] for shapes in copies if shapes[0][0] == 100] == [[10]]
