"""Put the trained models into the package, as safetensors, the larger parts in half precision."""

import argparse
import json
from pathlib import Path

from diffusers import StableDiffusionPipeline
from transformers import CLIPModel, CLIPProcessor

BUNDLED = Path(__file__).parents[2] / "src" / "denoscope" / "bundled"
LIMIT = 25e6
"""The largest size of the bundled models, in bytes."""


def without_entry(path: Path, name: str) -> None:
    """Remove an entry of a JSON file that its library writes, and warns about when it reads it back."""
    config = json.loads(path.read_text())
    config.pop(name, None)
    path.write_text(json.dumps(config, indent=2) + "\n")


def main(folder: Path, bundled: Path) -> None:
    """Write the package's models; fails above LIMIT bytes."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "shapes").to("cpu")
    for part in (pipeline.unet, pipeline.vae):
        part.half()  # diffusers reads them back as float32; transformers would keep half precision
    pipeline.save_pretrained(bundled / "shapes", safe_serialization=True)
    without_entry(bundled / "shapes" / "vae" / "config.json", "block_out_channels")
    CLIPModel.from_pretrained(folder / "clip").save_pretrained(bundled / "clip", safe_serialization=True)
    CLIPProcessor.from_pretrained(folder / "clip").save_pretrained(bundled / "clip")
    without_entry(bundled / "clip" / "tokenizer_config.json", "max_length")
    for path in bundled.rglob("*.safetensors"):
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in bundled.rglob("*") if path.is_file())
    print(f"{size / 1e6:.1f} MB")
    assert size <= LIMIT


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the trainings wrote")
    parser.add_argument("--bundled", type=Path, default=BUNDLED)
    main(**vars(parser.parse_args()))
