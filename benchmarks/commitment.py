"""When is each attribute of a picture decided? U-turns and prompt switches on scenes of the bundled world.

    python benchmarks/commitment.py                            # 50 scenes with one object: 15 minutes of two free cores
    python benchmarks/commitment.py --scenes 4 --workers 1     # a look

Uniform schedule, 30 steps, guidance 3. Three experiments for each scene:

- U-turn without a prompt: what the noisy picture itself still holds of each attribute;
- U-turn with its own prompt: what the prompt does not bring back, which is the position, since captions do not tell it;
- prompt switch: the caption, and from a step on the same caption with one word for another attribute.

Read by the judge of the bundled world. A scene whose picture is not as prompted is skipped, and counted. Every scene is
kept in --out, and a second call goes on where the first was stopped.
"""

import functools
import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table
from scenes import FIRST_SEED, GUIDANCE, STEPS, model
from work import benchmark_parser, over_scenes, table_path

import denoscope
from denoscope.timing.commitment import PromptSwitch, UTurn
from denoscope.timing.windows import across_scenes, commitment, in_order
from denoscope.worlds.readers import reader_for, same_value
from denoscope.worlds.shapes.judge import judge
from denoscope.worlds.shapes.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Scene, caption

AT = (0, 4, 6, 8, 10, 12, 14, 18, 22, 26, STEPS - 1)
"""Closest where most is decided; a sample costs as much as there are steps left."""
ALTERNATIVES = {"background": BACKGROUNDS, "colour": COLOURS, "shape": SHAPES, "size": SIZES, "texture": TEXTURES}
EXPERIMENTS = {
    "u_turn": "U-turn without a prompt",
    "u_turn_prompted": "U-turn with its own prompt",
    "prompt_switch": "Prompt switch",
}


def words_of(scene: Scene) -> list[str]:
    """Return the first of the scene's captions that says everything, a plain texture too."""
    thing = scene.things[0]
    values = {scene.background, thing.colour, thing.shape, thing.size, thing.texture}
    captions = (caption(scene, seed=scene.seed + i).words for i in range(100))
    return list(next(words for words in captions if values <= set(words)))


def reworded(words: list[str], old: str, new: str) -> str:
    """Return a caption with one word for another, and the article that goes with it."""
    changed = [new if word == old else word for word in words]
    vowel = {word: "an" if word[0] in "aeiou" else "a" for word in changed}
    return " ".join(vowel[changed[i + 1]] if word in ("a", "an") else word for i, word in enumerate(changed))


def switches(scene: Scene) -> dict[str, str]:
    """Return for each attribute the caption with another value of it."""
    rng, words, thing = np.random.default_rng([scene.seed, 5]), words_of(scene), scene.things[0]
    values = {
        "background": scene.background,
        **{name: getattr(thing, name) for name in ALTERNATIVES if name != "background"},
    }
    others = {}
    for name, value in values.items():
        others[name] = [other for other in ALTERNATIVES[name] if other != value]
    return {name: reworded(words, value, str(rng.choice(others[name]))) for name, value in values.items()}


def traced(prompt: str, seed: int) -> denoscope.Trace:
    return model().trace(prompt, seed=seed, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np")


@functools.cache
def unprompted() -> denoscope.Trace:
    """Record a run without a prompt, with the schedule of all others."""
    nothing = model().pipeline.encode_prompt("", "cpu", 1, False)[0]
    return model().trace(prompt_embeds=nothing, seed=0, num_inference_steps=STEPS, guidance_scale=1.0)


def results_of(seed: int, draws: int, eta: float) -> dict[str, Any] | None:
    """Return the three experiments on one scene as plain values; None if the picture is not as prompted."""
    scene, reader = Scene.random(seed, count=1), reader_for(model())
    base = traced(" ".join(words_of(scene)), seed)
    verdict = judge(base.image, scene)
    if not (verdict.background and verdict.things_right()):
        return None
    turn, switch = UTurn(reader, same_value, draws=draws, eta=eta), PromptSwitch(reader, same_value, eta=eta)
    switched = [
        switch(base, traced(prompt, seed), AT).sel(attribute=[name]) for name, prompt in switches(scene).items()
    ]
    results = {
        "u_turn": turn(base, AT, under=unprompted()),
        "u_turn_prompted": replace(turn, draws=1)(base, AT).sel(attribute=["position"]),
        "prompt_switch": xr.concat(switched, dim="attribute"),
    }
    return {name: result.to_dict() for name, result in results.items()}


def summary(name: str, scenes: list[dict[str, Any]]) -> xr.Dataset:
    """Return when each attribute is decided in an experiment, over all scenes."""
    return commitment(across_scenes([xr.Dataset.from_dict(scene[name]) for scene in scenes]))


def interval(values: xr.DataArray) -> str:
    """Return estimate and interval as text; ∞ for an attribute that is not decided by the last step."""
    low, estimate, high = (f"{v:.1f}" if np.isfinite(v) else "∞" for v in values.values)
    return f"{estimate} [{low}, {high}]"


def show(name: str, result: xr.Dataset) -> None:
    """Print the table and the curves of an experiment."""
    columns = ("decided at step", "at log-SNR", "width, steps", "width, log-SNR", "chance", "scenes")
    table = Table("attribute", *columns, title=EXPERIMENTS[name])
    for attribute in in_order(result):
        row = result.sel(attribute=attribute)
        cells = [interval(row[key]) for key in ("commitment", "commitment_log_snr", "width", "width_log_snr")]
        chance = f"{float(row['chance']):.2f}" if "chance" in row else ""
        table.add_row(attribute, *cells, chance, str(int(row["scenes"])))
    Console(width=150).print(table)
    curves = Table("P", *(f"{s}" for s in result["step"].values), title="decided, by step")
    curves.add_row("log-SNR", *(f"{v:.1f}" for v in result["log_snr"].values))
    for attribute in in_order(result):
        curves.add_row(
            attribute, *(f"{p:.2f}" for p in result["probability"].sel(bound="estimate", attribute=attribute).values)
        )
    Console(width=150).print(curves)
    Console(width=150).print(certainty(result))


def certainty(result: xr.Dataset) -> str:
    """Return the order of the attributes, with the share of resamples in which each goes before the next."""
    order = list(in_order(result))
    sure = [float(result["before"].sel(attribute=a, other=b)) for a, b in pairwise(order)]
    links = [f" before {b} ({share:.2f})" for b, share in zip(order[1:], sure, strict=True)]
    return f"Order, with the share of resamples in which each goes before the next: {order[0]}{','.join(links)}"


def main() -> None:
    parser = benchmark_parser(__doc__, scenes=50, out="out/commitment")
    parser.add_argument("--draws", type=int, default=2, help="noises of each U-turn without a prompt")
    parser.add_argument("--eta", type=float, default=0.0, help="noise of the sampler's own: 0 none, 1 as DDPM")
    options = parser.parse_args()
    settings = {"draws": options.draws, "eta": options.eta, "at": AT}
    score = functools.partial(results_of, draws=options.draws, eta=options.eta)
    seeds = range(FIRST_SEED, FIRST_SEED + 2 * options.scenes)
    scenes, skipped = over_scenes(score, seeds, options.scenes, settings, options)
    print(f"{len(scenes)} scenes, {skipped} skipped; {STEPS} steps, guidance {GUIDANCE:g}, eta {options.eta:g}")
    results = {name: summary(name, scenes) for name in EXPERIMENTS}
    for name, result in results.items():
        show(name, result)
    plain = {name: result.to_dict() for name, result in results.items()}
    table_path(options).write_text(json.dumps(plain, indent=1))
    print(table_path(options))


if __name__ == "__main__":
    main()
