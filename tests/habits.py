"""What people do to their pipelines to save memory or time, and small pipelines that it is done to."""

import contextlib
import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from families.unet_parts import clip_processor
from torch.nn.functional import linear

from denoscope.recording.components import networks_of

Apply = Callable[[Any, ExitStack], Any]
"""Does something to a pipeline and returns it, or another; undoes what is not the pipeline's on the stack."""


@dataclass(frozen=True)
class Habit:
    """Something that is done to a pipeline.

    `apply` does it. `reference` is done to a plain pipeline in its place and gives the same numbers in another way;
    None where the habit changes the numbers, so that only the pipeline itself can be compared. `around` is open around
    the recording, and around the questions too if `whole`. `packages` are needed besides Denoscope's own, `has` names
    attributes one of which the denoiser must have, and `limit` is the largest relative difference.
    """

    apply: Apply
    reference: Apply | None = lambda pipe, undo: pipe
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    whole: bool = False
    packages: tuple[str, ...] = ()
    has: tuple[str, ...] = ()
    limit: float = 2e-5

    def missing(self) -> str | None:
        """Return the first package that is not installed; None if all are."""
        return next((name for name in self.packages if importlib.util.find_spec(name) is None), None)

    def fits(self, pipe: Any) -> bool:
        """Return True if the habit can be had with a pipeline."""
        return not self.has or any(hasattr(part, name) for name in self.has for part in (pipe, denoiser(pipe)))


def denoiser(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


def of_denoiser(change: Callable[[Any], Any]) -> Apply:
    """Return a habit that changes the denoiser where it is."""

    def apply(pipe: Any, undo: ExitStack) -> Any:
        change(denoiser(pipe))
        return pipe

    return apply


def of_pipeline(change: Callable[[Any], Any]) -> Apply:
    """Return a habit that changes the pipeline where it is."""

    def apply(pipe: Any, undo: ExitStack) -> Any:
        change(pipe)
        return pipe

    return apply


# Weights elsewhere.


def group_offload(kind: str, to_disk: bool = False) -> Apply:
    """Return group offloading of every network, of one level of grouping."""

    def apply(pipe: Any, undo: ExitStack) -> Any:
        from diffusers.hooks import apply_group_offloading

        folder = undo.enter_context(tempfile.TemporaryDirectory()) if to_disk else None
        for name, module in networks_of(pipe).items():
            place = {} if folder is None else {"offload_to_disk_path": str(Path(folder) / name)}
            blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
            apply_group_offloading(
                module,
                onload_device=torch.device("cpu"),
                offload_device=torch.device("cpu"),
                offload_type=kind,
                **blocks,
                **place,
            )
        return pipe

    return apply


def sequential(pipe: Any, undo: ExitStack) -> Any:
    """Offload layer by layer, as `enable_sequential_cpu_offload` does on a GPU: weights are on meta between calls.

    With the CPU as the device that works, accelerate's `cpu_offload` takes each weight for a tied one and fails, so the
    hooks are attached without its table of tied weights.
    """
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_align_device_hook

    cpu = torch.device("cpu")
    for module in networks_of(pipe).values():
        weights = {name: value.detach().clone() for name, value in module.state_dict().items()}
        add_hook_to_module(module, AlignDevicesHook(cpu, io_same_device=True), append=True)
        attach_align_device_hook(module, execution_device=cpu, offload=True, weights_map=weights)
    return pipe


def device_map(place: str) -> Apply:
    """Return the pipeline saved and loaded again with a device map."""

    def apply(pipe: Any, undo: ExitStack) -> Any:
        folder = undo.enter_context(tempfile.TemporaryDirectory())
        pipe.save_pretrained(folder)
        return type(pipe).from_pretrained(folder, device_map=place)

    return apply


# Weights of other kinds.


class EightBitLinear(torch.nn.Module):
    """A linear layer whose weights are whole numbers, −127 to 127, with a factor for each row."""

    def __init__(self, layer: torch.nn.Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        scale = layer.weight.detach().abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / 127
        whole = (layer.weight.detach() / scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(whole, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def numbers(self) -> torch.Tensor:
        """Return the weights as floating-point numbers."""
        return self.weight.to(self.scale.dtype) * self.scale

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return linear(values, self.numbers(), self.bias)


def linears(module: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    return {path: layer for path, layer in module.named_modules() if type(layer) is torch.nn.Linear}


def eight_bits(module: torch.nn.Module) -> None:
    """Replace every linear layer of a network by one in eight bits."""
    for path, layer in linears(module).items():
        module.set_submodule(path, EightBitLinear(layer))


def rounded(module: torch.nn.Module) -> None:
    """Round the weights of every linear layer as eight bits do, and keep them as floating-point numbers."""
    with torch.no_grad():
        for layer in linears(module).values():
            layer.weight.copy_(EightBitLinear(layer).numbers())


def torchao(module: torch.nn.Module) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_(module, Int8WeightOnlyConfig(version=2))


def of_torchao(module: torch.nn.Module) -> None:
    """Put back floating-point numbers in the place of torchao's."""
    torchao(module)
    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        if hasattr(weight, "dequantize") and type(weight) is not torch.nn.Parameter:
            layer.weight = torch.nn.Parameter(weight.dequantize())


def bitsandbytes(module: torch.nn.Module) -> None:
    """Replace every linear layer by bitsandbytes' of four bits."""
    import bitsandbytes as bnb

    for path, layer in linears(module).items():
        other = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, torch.float32, quant_type="nf4"
        )
        other.load_state_dict(layer.state_dict())
        module.set_submodule(path, other.to("cpu"))


def of_bitsandbytes(module: torch.nn.Module) -> None:
    """Round the weights of every linear layer as bitsandbytes does."""
    import bitsandbytes as bnb

    with torch.no_grad():
        for layer in linears(module).values():
            packed = bnb.functional.quantize_4bit(layer.weight.data, quant_type="nf4", blocksize=64)
            layer.weight.copy_(bnb.functional.dequantize_4bit(*packed))


def lora(fused: bool = False, merged: bool = False) -> Apply:
    """Return a LoRA of random numbers on the attention's projections: beside, fused, or as plain weights."""

    def apply(pipe: Any, undo: ExitStack) -> Any:
        import peft

        module = denoiser(pipe)
        torch.manual_seed(3)
        module.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
        if fused or merged:
            module.fuse_lora()
        if merged:
            from diffusers.utils.peft_utils import recurse_remove_peft_layers

            recurse_remove_peft_layers(module)
        return pipe

    return apply


# Code of other kinds.


def compiled(pipe: Any, undo: ExitStack, backend: str) -> Any:
    """Put the compiled denoiser in the place of the plain one."""
    undo.callback(torch.compiler.reset)
    name = "unet" if getattr(pipe, "unet", None) is not None else "transformer"
    setattr(pipe, name, torch.compile(denoiser(pipe), backend=backend))
    return pipe


def compiled_in_place(pipe: Any, undo: ExitStack) -> Any:
    undo.callback(torch.compiler.reset)
    denoiser(pipe).compile(backend="eager")
    return pipe


def compiled_blocks(pipe: Any, undo: ExitStack) -> Any:
    undo.callback(torch.compiler.reset)
    denoiser(pipe).compile_repeated_blocks(backend="eager")
    return pipe


def compiled_decoder(pipe: Any, undo: ExitStack) -> Any:
    undo.callback(torch.compiler.reset)
    pipe.vae.decode = torch.compile(pipe.vae.decode, backend="eager")
    return pipe


def cached(kind: str) -> Apply:
    """Return a cache of diffusers' in the denoiser, which some steps take their numbers from."""

    def apply(pipe: Any, undo: ExitStack) -> Any:
        now = dict(current_timestep_callback=lambda: pipe._current_timestep)
        configs = {
            "first block": lambda: diffusers.FirstBlockCacheConfig(threshold=0.5),
            "pyramid": lambda: diffusers.PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(-1, 1001), **now
            ),
        }
        denoiser(pipe).enable_cache(configs[kind]())
        return pipe

    return apply


def training(pipe: Any, undo: ExitStack) -> Any:
    """Put the denoiser and the decoder into training mode, with gradient checkpointing."""
    for module in (denoiser(pipe), pipe.vae):
        module.train()
        if getattr(module, "_supports_gradient_checkpointing", False):
            module.enable_gradient_checkpointing()
    return pipe


def tiles(pipe: Any, undo: ExitStack) -> Any:
    """Let the autoencoder work tile by tile, small enough for small pictures."""
    pipe.vae.enable_tiling()
    for name, size in (("tile_sample_min_size", 16), ("tile_latent_min_size", 4)):
        if hasattr(pipe.vae, name):
            setattr(pipe.vae, name, size)
    return pipe


def user_hooks(pipe: Any, undo: ExitStack) -> Any:
    """Count the calls of the denoiser and of a layer in it, as users do to see shapes."""
    calls: list[int] = []
    module = denoiser(pipe)
    for layer in (module, list(module.children())[-1]):
        layer.register_forward_hook(lambda *_: calls.append(1))
    return pipe


class Checker(diffusers.ModelMixin, diffusers.ConfigMixin):
    """A safety checker that looks at pictures and leaves them as they are."""

    @diffusers.configuration_utils.register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: Any, clip_input: Any) -> tuple[Any, list[bool]]:
        return images, [False] * len(images)


def checked(pipe: Any, undo: ExitStack) -> Any:
    pipe.register_modules(safety_checker=Checker(), feature_extractor=clip_processor())
    return pipe


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


ON_CPU = {"device": "cpu"}
HABITS: dict[str, Habit] = {
    "nothing": Habit(of_pipeline(lambda pipe: None), limit=0.0),
    "enable_model_cpu_offload": Habit(
        of_pipeline(lambda pipe: pipe.enable_model_cpu_offload(**ON_CPU)), packages=("accelerate",)
    ),
    "enable_sequential_cpu_offload": Habit(sequential, packages=("accelerate",)),
    "group offload, blocks": Habit(group_offload("block_level"), packages=("accelerate",)),
    "group offload, leaves": Habit(group_offload("leaf_level"), packages=("accelerate",)),
    "group offload, leaves, disk": Habit(group_offload("leaf_level", to_disk=True), packages=("accelerate",)),
    "device_map cpu": Habit(device_map("cpu"), packages=("accelerate",)),
    "device_map balanced": Habit(device_map("balanced"), packages=("accelerate",)),
    "weights of 8 bits": Habit(of_denoiser(eight_bits), of_denoiser(rounded)),
    "torchao int8": Habit(of_denoiser(torchao), of_denoiser(of_torchao), packages=("torchao",), limit=1e-3),
    "bitsandbytes nf4": Habit(
        of_denoiser(bitsandbytes), of_denoiser(of_bitsandbytes), packages=("bitsandbytes",), limit=1e-3
    ),
    "LoRA": Habit(lora(), lora(merged=True), packages=("peft",)),
    "LoRA, fused": Habit(lora(fused=True), lora(merged=True), packages=("peft",)),
    "torch.compile, eager": Habit(lambda pipe, undo: compiled(pipe, undo, "eager")),
    "torch.compile, aot_eager": Habit(lambda pipe, undo: compiled(pipe, undo, "aot_eager"), limit=1e-4),
    "torch.compile, inductor": Habit(lambda pipe, undo: compiled(pipe, undo, "inductor"), limit=1e-3),
    "unet.compile()": Habit(compiled_in_place),
    "compile_repeated_blocks": Habit(compiled_blocks, has=("_repeated_blocks",)),
    "vae.decode compiled": Habit(compiled_decoder),
    "vae.enable_slicing": Habit(of_pipeline(lambda pipe: pipe.vae.enable_slicing())),
    "vae.enable_tiling": Habit(tiles, reference=tiles),
    "enable_attention_slicing": Habit(
        of_pipeline(lambda pipe: pipe.enable_attention_slicing(1)), has=("set_attention_slice",)
    ),
    "enable_cache, first block": Habit(cached("first block"), None, has=("enable_cache",)),
    "enable_cache, pyramid": Habit(cached("pyramid"), None, has=("enable_cache",)),
    "training, checkpointing": Habit(training),
    "channels_last": Habit(of_denoiser(lambda module: module.to(memory_format=torch.channels_last)), limit=1e-4),
    "fuse_qkv_projections": Habit(of_denoiser(lambda module: module.fuse_qkv_projections()), limit=1e-4),
    "FreeU": Habit(
        of_pipeline(lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)), None, has=("enable_freeu",)
    ),
    "in inference_mode": Habit(of_pipeline(lambda pipe: None), around=torch.inference_mode),
    "in autocast": Habit(of_pipeline(lambda pipe: None), None, around=autocast),
    "in autocast, questions too": Habit(of_pipeline(lambda pipe: None), None, around=autocast, whole=True),
    "forward hooks": Habit(user_hooks),
    "progress bar off": Habit(of_pipeline(lambda pipe: pipe.set_progress_bar_config(disable=True))),
    "safety checker": Habit(checked, has=("safety_checker",)),
}


def state(pipe: Any) -> dict[str, Any]:
    """Return what a user has set on a pipeline's networks, in comparable form."""
    found: dict[str, Any] = {}
    for part, network in networks_of(pipe).items():
        for name, module in network.named_modules():
            hooks = [len(getattr(module, key)) for key in vars(module) if key.endswith("_hooks")]
            checkpointing = getattr(module, "gradient_checkpointing", None)
            processor = id(getattr(module, "processor", None))
            calls = [key for key in ("_call_impl", "_compiled_call_impl", "forward", "decode") if vars(module).get(key)]
            found[f"{part}.{name}"] = (hooks, module.training, checkpointing, processor, calls)
        weights = network.named_parameters()
        found[part] = [(name, w.dtype, w.device, w.requires_grad) for name, w in weights]
    return found


@contextlib.contextmanager
def quiet() -> Any:
    """While open, libraries do not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
