"""Features are those of the network that a repository holds, of pictures as its own processor makes them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from small import HUB_SAYS, failing_hub, processor_named, refusal, saved_clip
from torch.nn.functional import interpolate, normalize

from denoscope.attributors.base import options_of
from denoscope.errors import InputError, ModelError, NumericsError
from denoscope.recording.loading import bundled_folder
from denoscope.targets import FeatureCloseness
from denoscope.vision.encoders import VisionModel, VisionTower, load_encoder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIT = dict(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A small CLIP, a ViT with its pooler, an image classifier of ViT's without, and a ResNet."""
    torch.manual_seed(0)
    home = tmp_path_factory.mktemp("encoders")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    networks = {
        "vit": transformers.ViTModel(transformers.ViTConfig(**VIT)),
        "vit classifier": transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)),
        "resnet": transformers.ResNetForImageClassification(config),
    }
    for name, network in networks.items():
        network.save_pretrained(home / name)
        processor = processor_named("ViT")(size={"height": 16, "width": 16}, image_mean=MEAN, image_std=STD)
        processor.save_pretrained(home / name)
    return {**{name: home / name for name in networks}, "clip": saved_clip(home / "clip")}


@pytest.fixture
def pictures() -> torch.Tensor:
    """Three pictures of the encoders' own size, of 8-bit values."""
    return torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0)) / 255


def pixel_values(folder: Path, pictures: torch.Tensor) -> torch.Tensor:
    """What the repository's own processor makes of pictures."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    images = [Image.fromarray(p) for p in (pictures * 255).round().byte().movedim(1, -1).numpy()]
    return processor(images=images, return_tensors="pt")["pixel_values"]


@torch.no_grad()
def test_clip_features_are_its_own_of_unit_length(folders, pictures):
    encoder, clip = load_encoder(folders["clip"]), transformers.CLIPModel.from_pretrained(folders["clip"]).eval()
    found = clip.get_image_features(pixel_values=pixel_values(folders["clip"], pictures))
    truth = normalize(getattr(found, "pooler_output", found), dim=-1)
    assert torch.allclose(encoder(pictures), truth, atol=1e-5) and isinstance(encoder.module, VisionTower)
    assert encoder.width == 24 and encoder.size == (16, 16)


@torch.no_grad()
def test_a_vision_model_is_summed_up_by_its_pooler(folders, pictures):
    network = transformers.ViTModel.from_pretrained(folders["vit"]).eval()
    truth = network(pixel_values=pixel_values(folders["vit"], pictures)).pooler_output
    assert torch.allclose(load_encoder(folders["vit"])(pictures), truth, atol=1e-5) and truth.std() > 0.01


@torch.no_grad()
def test_a_pooler_that_was_not_trained_is_not_made_up(folders, pictures):
    network = transformers.ViTForImageClassification.from_pretrained(folders["vit classifier"]).eval().vit
    truth = network(pixel_values=pixel_values(folders["vit classifier"], pictures)).last_hidden_state.mean(dim=1)
    encoder = load_encoder(folders["vit classifier"])
    assert torch.allclose(encoder(pictures), truth, atol=1e-5)
    assert isinstance(encoder.module, VisionModel) and not encoder.module.pooled


@torch.no_grad()
def test_a_classifier_without_its_last_layer(folders, pictures):
    network = transformers.ResNetForImageClassification.from_pretrained(folders["resnet"]).eval()
    truth = network(pixel_values=pixel_values(folders["resnet"], pictures)).logits
    last = network.classifier[-1]
    assert torch.allclose(last(load_encoder(folders["resnet"])(pictures)), truth, atol=1e-5)


@torch.no_grad()
def test_pictures_of_another_size_are_resized_whole(folders):
    encoder = load_encoder(folders["vit"])
    large = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    small = interpolate(large, (16, 16), mode="bilinear", antialias=True)
    assert torch.allclose(encoder(large), encoder(small), atol=1e-6)


@torch.no_grad()
def test_the_bundled_encoder_tells_scenes_apart():
    from denoscope.worlds.shapes.scenes import Scene, Thing, render

    red = [render(Scene("white", (Thing("circle", "red", "large", "plain", x, 32, 13.0),))) for x in (24, 36)]
    blue = render(Scene("white", (Thing("cross", "blue", "large", "striped", 24, 32, 13.0),)))
    features = load_encoder()(torch.from_numpy(np.stack([*red, blue])).movedim(-1, 1).float())
    alike = features @ features.T
    assert alike[0, 1] > alike[0, 2] + 0.1 and torch.allclose(features.norm(dim=1), torch.ones(3))


def test_features_are_differentiable(folders):
    encoder = load_encoder(folders["vit"], dtype=torch.float64)
    pictures = torch.rand(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    direction = torch.randn(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (slope,) = torch.autograd.grad(encoder(pictures.requires_grad_()).sum(), pictures)
    ahead, behind = (encoder(pictures.detach() + e * direction).sum() for e in (1e-5, -1e-5))
    assert float((ahead - behind) / 2e-5) == pytest.approx(float((slope * direction).sum()), rel=1e-6)
    assert not any(weights.requires_grad for weights in encoder.module.parameters())


def test_features_of_a_trace_and_what_a_result_keeps(trace):
    target = FeatureCloseness(load_encoder())
    samples = torch.cat([trace[2].sample, 0.5 * trace[2].sample])
    with torch.no_grad():
        same, other = target(trace[2], samples).tolist()
    assert same == pytest.approx(0, abs=1e-9) and other < -1e-6
    kept = options_of(target)
    assert kept == json.loads(json.dumps(kept))
    assert kept["encoder_name"] == "shapes" and kept["encoder_width"] == 128


@pytest.mark.parametrize(
    "given, said",
    [
        ("shape", 'Did you mean "shapes"?'),
        ("", "no encoder and no folder"),
        ("a/b/c", "written owner/name"),
        (__file__, "is not an encoder: it is a file"),
        (bundled_folder("shapes"), "without config.json"),
        (bundled_folder("shapes") / "text_encoder", "not an encoder of pictures: it is a CLIPTextModel"),
    ],
)
def test_what_is_no_encoder(given, said, monkeypatch):
    monkeypatch.setattr("denoscope.recording.loading._hub_answers", lambda: pytest.fail("asked the network"))
    assert said in refusal(lambda: load_encoder(given), kind=ModelError)


def test_a_hub_id_without_a_network_is_refused_with_the_reason():
    """The tests run with HF_HUB_OFFLINE."""
    message = refusal(lambda: load_encoder("someone/some-encoder"), kind=ModelError)
    assert 'The encoder "someone/some-encoder"' in message and "cannot be reached" in message


@pytest.mark.parametrize("name, said", HUB_SAYS)
def test_what_the_hub_says_is_passed_on(monkeypatch, name, said):
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", failing_hub(name))
    assert said in refusal(lambda: load_encoder("someone/some-encoder"), kind=ModelError)


def test_weights_that_transformers_would_make_up(folders, tmp_path):
    network = transformers.ViTModel.from_pretrained(folders["vit"])
    weights = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("layernorm")}
    network.save_pretrained(tmp_path, state_dict=weights)
    assert "lack 2 weights of the ViTModel" in refusal(lambda: load_encoder(tmp_path), kind=ModelError)


def test_pictures_that_are_none(folders):
    encoder = load_encoder(folders["vit"])
    for given in (torch.zeros(3, 16, 16), torch.zeros(1, 1, 16, 16), np.zeros((1, 3, 16, 16)), None):
        assert "(n, 3, H, W)" in refusal(lambda given=given: encoder(given))
    assert "Divide" in refusal(lambda: encoder(torch.full((1, 3, 16, 16), 255.0)), kind=InputError)
    broken = torch.full((1, 3, 16, 16), float("nan"))
    assert "NaN or infinity" in refusal(lambda: encoder(broken), kind=NumericsError)


def test_dtype_and_device(folders, pictures):
    half = load_encoder(folders["vit"], dtype="bfloat16", device="cpu")
    with torch.no_grad():
        assert half(pictures).dtype == torch.float32 and next(half.module.parameters()).dtype == torch.bfloat16
        assert load_encoder(folders["vit"], dtype=torch.float64)(pictures).dtype == torch.float64
        assert torch.allclose(half(pictures), load_encoder(folders["vit"])(pictures), atol=0.05)
