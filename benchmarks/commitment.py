"""When is each attribute of a picture decided? U-turns and prompt switches on scenes of the bundled world.

    python benchmarks/commitment.py                            # 50 scenes with one object: 15 minutes of two free cores
    python benchmarks/commitment.py --scenes 4 --workers 1     # a look

Uniform schedule, 30 steps, guidance 3. Three experiments for each scene:

- U-turn without a prompt: what the noisy picture itself still holds of each attribute;
- U-turn with its own prompt: what the prompt does not bring back, which is the position, since captions do not tell it;
- prompt switch: the caption, and from a step on the same caption with one word for another attribute.

Read by the judge of the bundled world. A scene whose picture is not as told is passed over, and counted. Every scene is
kept in a file of its own as soon as it is done; started again with the same options, the rest is done.
"""

import argparse
import functools
import json
import multiprocessing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import xarray as xr
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scenes import GUIDANCE, STEPS, model

import denoscope
from denoscope.timing.commitment import PromptSwitch, UTurn
from denoscope.timing.windows import across_scenes, commitment, in_order
from denoscope.worlds.readers import reader_for, same_value
from denoscope.worlds.shapes.judge import judge
from denoscope.worlds.shapes.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Scene, caption

FIRST_SEED = 8_000_000
AT = (0, 4, 6, 8, 10, 12, 14, 18, 22, 26, STEPS - 1)
"""Closest where most is decided; a sample costs as much as there are steps left."""
ALTERNATIVES = {"background": BACKGROUNDS, "colour": COLOURS, "shape": SHAPES, "size": SIZES, "texture": TEXTURES}
EXPERIMENTS = {
    "u_turn": "U-turn without a prompt",
    "u_turn_prompted": "U-turn with its own prompt",
    "prompt_switch": "Prompt switch",
}


def words_of(scene: Scene) -> list[str]:
    """The first of the scene's captions that says everything, a plain texture too."""
    thing = scene.things[0]
    wanted = {scene.background, thing.colour, thing.shape, thing.size, thing.texture}
    captions = (caption(scene, seed=scene.seed + i).words for i in range(100))
    return list(next(words for words in captions if wanted <= set(words)))


def reworded(words: list[str], old: str, new: str) -> str:
    """A caption with one word for another, and the article that goes with it."""
    changed = [new if word == old else word for word in words]
    vowel = {word: "an" if word[0] in "aeiou" else "a" for word in changed}
    return " ".join(vowel[changed[i + 1]] if word in ("a", "an") else word for i, word in enumerate(changed))


def switches(scene: Scene) -> dict[str, str]:
    """For each attribute, the caption with another value of it."""
    rng, words, thing = np.random.default_rng([scene.seed, 5]), words_of(scene), scene.things[0]
    values = {
        "background": scene.background,
        **{name: getattr(thing, name) for name in ALTERNATIVES if name != "background"},
    }
    others = {name: [value for value in ALTERNATIVES[name] if value != own] for name, own in values.items()}
    return {name: reworded(words, own, str(rng.choice(others[name]))) for name, own in values.items()}


def traced(prompt: str, seed: int) -> denoscope.Trace:
    return model().trace(prompt, seed=seed, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np")


@functools.cache
def unprompted() -> denoscope.Trace:
    """A run of the model as it draws without a prompt, by the schedule of all others."""
    nothing = model().pipeline.encode_prompt("", "cpu", 1, False)[0]
    return model().trace(prompt_embeds=nothing, seed=0, num_inference_steps=STEPS, guidance_scale=1.0)


def results_of(seed: int, draws: int, eta: float) -> dict[str, dict] | None:
    """The three experiments on one scene as plain dicts; None where the picture is not as told."""
    scene, reader = Scene.random(seed, count=1), reader_for(model())
    base = traced(" ".join(words_of(scene)), seed)
    verdict = judge(base.image, scene)
    if not (verdict.background and verdict.things_right()):
        return None
    turn, switch = UTurn(reader, same_value, draws=draws, eta=eta), PromptSwitch(reader, same_value, eta=eta)
    switched = [
        switch(base, traced(prompt, seed), AT).sel(attribute=[name]) for name, prompt in switches(scene).items()
    ]
    found = {
        "u_turn": turn(base, AT, under=unprompted()),
        "u_turn_prompted": replace(turn, draws=1)(base, AT).sel(attribute=["position"]),
        "prompt_switch": xr.concat(switched, dim="attribute"),
    }
    return {name: result.to_dict() for name, result in found.items()}


def kept(seed: int, folder: Path, draws: int, eta: float) -> Path:
    """The file of a scene's results, made unless it is there; whole or not at all."""
    path = folder / f"{seed}.json"
    if not path.exists():
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps(results_of(seed, draws, eta)))
        beside.rename(path)
    return path


def collected(folder: Path, scenes: int, workers: int, draws: int, eta: float) -> tuple[list[dict], int]:
    """The results of the first scenes that were drawn as told, and how many were passed over before."""
    found: list[dict] = []
    passed_over = 0
    make = functools.partial(kept, folder=folder, draws=draws, eta=eta)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for path in track(pool.imap(make, range(FIRST_SEED, FIRST_SEED + 2 * scenes)), total=2 * scenes):
            result = json.loads(path.read_text())
            passed_over += result is None
            found += [result] if result else []
            if len(found) == scenes:
                break
    return found, passed_over


def summary(name: str, found: list[dict]) -> xr.Dataset:
    return commitment(across_scenes([xr.Dataset.from_dict(result[name]) for result in found]))


def interval(values: xr.DataArray) -> str:
    """Estimate and interval; ∞ for what is not decided by the last step."""
    low, estimate, high = (f"{v:.1f}" if np.isfinite(v) else "∞" for v in values.values)
    return f"{estimate} [{low}, {high}]"


def show(name: str, found: xr.Dataset) -> None:
    columns = ("decided at step", "at log-SNR", "width, steps", "width, log-SNR", "chance", "scenes")
    table = Table("attribute", *columns, title=EXPERIMENTS[name])
    for attribute in in_order(found):
        row = found.sel(attribute=attribute)
        cells = [interval(row[key]) for key in ("commitment", "commitment_log_snr", "width", "width_log_snr")]
        chance = f"{float(row['chance']):.2f}" if "chance" in row else ""
        table.add_row(attribute, *cells, chance, str(int(row["scenes"])))
    Console(width=150).print(table)
    curves = Table("P", *(f"{s}" for s in found["step"].values), title="decided, by step")
    curves.add_row("log-SNR", *(f"{v:.1f}" for v in found["log_snr"].values))
    for attribute in in_order(found):
        curves.add_row(
            attribute, *(f"{p:.2f}" for p in found["probability"].sel(bound="estimate", attribute=attribute).values)
        )
    Console(width=150).print(curves)
    Console(width=150).print(certainty(found))


def certainty(found: xr.Dataset) -> str:
    """The order, with the share of resamples in which each goes before the next."""
    order = list(in_order(found))
    sure = [float(found["before"].sel(attribute=a, other=b)) for a, b in pairwise(order)]
    links = [f" before {b} ({share:.2f})" for b, share in zip(order[1:], sure, strict=True)]
    return f"Order, with the share of resamples in which each goes before the next: {order[0]}{','.join(links)}"


def same_options(folder: Path, options: dict) -> None:
    """Results of other options are not mixed with these."""
    path = folder / "options.json"
    if path.exists() and json.loads(path.read_text()) != options:
        raise SystemExit(
            f"{folder} holds results of {path.read_text()}, and {json.dumps(options)} was asked for. "
            "Ask for the same, or give another --out."
        )
    path.write_text(json.dumps(options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--draws", type=int, default=2, help="noises of each U-turn without a prompt")
    parser.add_argument("--eta", type=float, default=0.0, help="noise of the sampler's own: 0 none, 1 as DDPM")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/commitment"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    same_options(asked.out, {"draws": asked.draws, "eta": asked.eta, "at": list(AT)})
    found, passed_over = collected(asked.out, asked.scenes, asked.workers, asked.draws, asked.eta)
    print(f"{len(found)} scenes, {passed_over} passed over; {STEPS} steps, guidance {GUIDANCE:g}, eta {asked.eta:g}")
    results = {name: summary(name, found) for name in EXPERIMENTS}
    for name, result in results.items():
        show(name, result)
    (asked.out / "commitment.json").write_text(json.dumps({name: r.to_dict() for name, r in results.items()}, indent=1))
    print(asked.out / "commitment.json")


if __name__ == "__main__":
    main()
