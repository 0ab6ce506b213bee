"""The pipeline of the same parts for another task: text to picture, picture to picture, inpainting."""

from typing import Any

from ..errors import ModelError, did_you_mean, in_short

TASKS = {
    "text2img": "AutoPipelineForText2Image",
    "img2img": "AutoPipelineForImage2Image",
    "inpaint": "AutoPipelineForInpainting",
}
"""The tasks that diffusers makes pipelines for from one that is loaded, and the classes that make them."""


def check_task(name: str | None) -> None:
    """Raise `ModelError` for the name of no task; None is the pipeline's own."""
    if name is not None and name not in TASKS:
        raise ModelError(f'There is no pipeline "{name}". {did_you_mean(name, TASKS)}')


def for_task(pipeline: Any, name: str | None) -> Any:
    """Return a pipeline of the same parts for a task, made by diffusers; the given one for None, and left as it is.

    Raises `ModelError` where diffusers has no such pipeline for these parts.
    """
    check_task(name)
    if name is None:
        return pipeline
    import diffusers

    kind: Any = getattr(diffusers, TASKS[name])
    try:
        other = kind.from_pipe(pipeline)
    except Exception as error:
        raise ModelError(
            f"{type(pipeline).__name__} cannot be made into a pipeline for {name}: {in_short(error)} diffusers has "
            "one for the usual families, such as Stable Diffusion, SDXL and Flux. Leave the pipeline out for the "
            "model's own, or load the one that you mean with diffusers and hand it over."
        ) from error
    other.set_progress_bar_config(**getattr(pipeline, "_progress_bar_config", {}))
    return other
