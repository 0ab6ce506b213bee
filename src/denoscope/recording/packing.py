"""Recorded values as JSON, with their tensors and pictures beside it, and back. Nothing is pickled.

Values that JSON does not know are objects with one key that says the kind, such as {"tuple": [...]}. Tensors and
pictures are numbered, each stored once, however often it is met. Objects of Denoscope are known by a list of classes,
and of other classes only outputs of diffusers and transformers are made.
"""

import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import errors
from ..errors import DenoscopeError, InputError
from .decoding import Autoencoder, Pixels
from .engines import Signature
from .hooks.blanks import Blank, BlankOutput
from .hooks.calls import DecoderCall
from .hooks.mixing import Mixture
from .hooks.recorded import RecordedStep
from .hooks.replay import DenoiserCall, Part, Replay
from .hooks.surroundings import Autocast
from .layout import Layout
from .noise import NoiseLevel
from .pictures import Images
from .steps import Step

CLASSES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Autocast, Autoencoder, Blank, DecoderCall, DenoiserCall, Images, Layout, Mixture, NoiseLevel, Part, Pixels,
        RecordedStep, Replay, Signature, Step,
    )
}  # fmt: skip
"""Denoscope's own classes that are stored, by their names."""
BOUND = {"run", "decoder"}
"""Fields that tie an object to its run, and are set anew."""
LIBRARIES = ("diffusers", "transformers")
"""Packages whose output classes are made again."""
PLAIN = (torch.Tensor, torch.nn.Parameter)
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
    )
}  # fmt: skip
"""The dtypes of tensors that are stored."""
IN_PNG = ("1", "L", "LA", "P", "RGB", "RGBA")
"""Modes of PIL that a PNG keeps as they are; others are stored as their bytes."""


class Unstorable(Exception):
    """A value that no folder can hold; the message is its kind."""


@dataclasses.dataclass(frozen=True)
class Missing:
    """The place of an argument that could not be stored."""

    kind: str

    def __repr__(self) -> str:
        return f"<not stored: a {self.kind}>"


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor on its way to a file: its numbers in the order in which they lie, and how to bring them back."""

    tensor: torch.Tensor
    about: Mapping[str, Any]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Stored":
        """Return a tensor to be stored; raises `Unstorable` for one without plain numbers: meta, sparse, quantised."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        if type(tensor) not in PLAIN or tensor.is_meta or tensor.layout is not torch.strided or dtype not in DTYPES:
            raise Unstorable(f"{type(tensor).__name__} of {dtype} on {tensor.device}")
        tensor = tensor.detach()
        about: dict[str, Any] = {"dtype": dtype, "device": str(tensor.device), "shape": list(tensor.shape)}
        strides = tensor.stride()
        order = sorted(range(tensor.ndim), key=lambda dim: (-strides[dim], dim))
        if not tensor.is_contiguous() and tensor.permute(order).is_contiguous():
            about["stride"] = list(strides)
            tensor = tensor.permute(order)
        return cls(torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor, about)

    @property
    def nbytes(self) -> int:
        return self.tensor.numel() * self.tensor.element_size()

    def on_host(self) -> torch.Tensor:
        """Return the numbers in memory of their own, on the CPU."""
        whole = self.tensor.cpu().contiguous()
        return whole.clone() if whole.data_ptr() == self.tensor.data_ptr() else whole


def brought_back(tensor: torch.Tensor, about: Mapping[str, Any], device: torch.device) -> torch.Tensor:
    """Return a tensor as `Stored` took it: shape, strides and dtype, in memory of its own."""
    if DTYPES[about["dtype"]].is_complex:
        tensor = torch.view_as_complex(tensor)
    stride = about.get("stride")
    whole = tensor.reshape(about["shape"]) if stride is None else tensor.reshape(-1).as_strided(about["shape"], stride)
    return whole.clone().to(device)


class Packer:
    """Packs values: `networks` are known by their names, `streams` are where generators were before the call."""

    def __init__(
        self, networks: Mapping[str, torch.nn.Module], streams: Mapping[int, tuple[torch.device, torch.Tensor]]
    ):
        self.names = {id(module): name for name, module in networks.items()}
        self.streams = streams
        self.tensors: list[Stored] = []
        self.pictures: list[Image.Image] = []
        self._numbers: dict[Any, int] = {}
        self._kept: list[Any] = []  # while they are here no other object has their address

    def pack(self, value: Any) -> Any:
        """Return the JSON of a value; raises `Unstorable`, naming the kind, for one that cannot be stored."""
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": str(value)}
        for kinds, pack in self._ways():
            if isinstance(value, kinds):
                return pack(value)
        raise Unstorable(type(value).__name__)

    def attempt(self, value: Any) -> tuple[Any, str | None]:
        """Return the JSON of a value and None; or None and the kind of what cannot be stored in it."""
        tensors, pictures, numbers = len(self.tensors), len(self.pictures), dict(self._numbers)
        try:
            return self.pack(value), None
        except Unstorable as problem:
            del self.tensors[tensors:], self.pictures[pictures:]
            self._numbers = numbers
            return None, str(problem)

    def _ways(self) -> list[tuple[Any, Callable[[Any], Any]]]:
        return [
            (torch.Tensor, lambda value: {"tensor": self._tensor(value)}),
            (torch.nn.Module, self._network),
            (torch.Generator, self._generator),
            (torch.dtype, lambda value: {"dtype": str(value).removeprefix("torch.")}),
            (torch.device, lambda value: {"device": str(value)}),
            (torch.Size, lambda value: {"size": list(value)}),
            ((np.ndarray, np.generic), self._array),
            (Image.Image, lambda value: {"picture": self._picture(value)}),
            (Missing, lambda value: {"missing": value.kind}),
            (BlankOutput, lambda value: {"blank": _name_of(value.kind), "fields": self._named(value.fields)}),
            (tuple(CLASSES.values()), self._own),
            (DenoscopeError, lambda value: {"error": type(value).__name__, "text": str(value)}),
            (PurePath, lambda value: {"path": str(value)}),
            (range, lambda value: {"range": [value.start, value.stop, value.step]}),
            ((set, frozenset), self._set),
            (tuple, self._tuple),
            (list, self._list),
            (Mapping, self._mapping),
        ]

    def _number(self, key: Any, value: Any, found: list[Any], make: Callable[[], Any]) -> int:
        if key not in self._numbers:
            found.append(make())
            self._numbers[key] = len(found) - 1
            self._kept.append(value)
        return self._numbers[key]

    def _tensor(self, tensor: torch.Tensor) -> int:
        stored = Stored.of(tensor)
        lies = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device)
        key = ("tensor", *lies) if tensor.numel() else ("tensor", id(tensor))
        return self._number(key, tensor, self.tensors, lambda: stored)

    def _picture(self, picture: Image.Image) -> int:
        return self._number(("picture", id(picture)), picture, self.pictures, lambda: picture)

    def _network(self, module: torch.nn.Module) -> Any:
        if id(module) not in self.names:
            raise Unstorable(type(module).__name__)
        return {"network": self.names[id(module)]}

    def _generator(self, generator: torch.Generator) -> Any:
        device, state = self.streams.get(id(generator), (generator.device, generator.get_state()))
        number = self._numbers.setdefault(("generator", id(generator)), len(self._numbers))
        return {"generator": number, "device": str(device), "state": self.pack(state)}

    def _array(self, array: Any) -> Any:
        try:
            tensor = torch.from_numpy(np.ascontiguousarray(array).reshape(np.shape(array)))
        except TypeError:
            raise Unstorable(f"{type(array).__name__} of {array.dtype}") from None
        self._kept.append(tensor)
        return {"number" if isinstance(array, np.generic) else "array": self._tensor(tensor)}

    def _own(self, value: Any) -> Any:
        """Return an object of Denoscope; met again, it is the number that it was given at first."""
        key = ("object", id(value))
        if key in self._numbers:
            return {"object": self._numbers[key]}
        names = [each.name for each in dataclasses.fields(value) if each.name not in BOUND]
        fields = {name: self.pack(getattr(value, name)) for name in names}
        self._kept.append(value)
        self._numbers[key] = len(self._numbers)
        return {"of": type(value).__name__, "number": self._numbers[key], "fields": fields}

    def _set(self, values: Any) -> Any:
        return {"set" if isinstance(values, set) else "frozenset": [self.pack(value) for value in sorted(values)]}

    def _tuple(self, values: Any) -> Any:
        if type(values) is not tuple:
            raise Unstorable(type(values).__name__)
        return {"tuple": [self.pack(value) for value in values]}

    def _list(self, values: Any) -> Any:
        return [self.pack(value) for value in values]

    def _named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {str(name): self.pack(value) for name, value in values.items()}

    def _mapping(self, values: Mapping[Any, Any]) -> Any:
        if hasattr(values, "to_tuple"):
            return {"output": _name_of(type(values)), "fields": self._named(_fields_of(values))}
        return {"dict": [[self.pack(key), self.pack(value)] for key, value in values.items()]}


def _fields_of(output: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of an output of diffusers or transformers, the empty ones too."""
    named = getattr(output, "__dataclass_fields__", None)
    return dict(output) if named is None else {name: getattr(output, name) for name in named}


def _name_of(kind: type) -> str:
    """Return module and name of an output class; raises `Unstorable` for those of other packages."""
    if kind.__module__.partition(".")[0] not in LIBRARIES:
        raise Unstorable(kind.__name__)
    return f"{kind.__module__}:{kind.__qualname__}"


def _kind_named(name: str) -> Any:
    """Return an output class by module and name; a plain object with the same fields if it is not there any more."""
    module, _, kind = name.partition(":")
    if module.partition(".")[0] not in LIBRARIES:
        raise InputError(f"The trace names a class of another package, {name}, which is not made. Record it again.")
    try:
        found = getattr(import_module(module), kind)
    except (ImportError, AttributeError):
        return SimpleNamespace
    return found if isinstance(found, type) and hasattr(found, "to_tuple") else SimpleNamespace


KINDS = frozenset(
    "float tensor network generator dtype device size array number picture missing blank output of object error path "
    "range set frozenset tuple dict".split()
)
"""The kinds of packed values, each a method of `Unpacker`."""


class Unpacker:
    """Brings packed values back.

    `tensor` and `picture` return those of a number, `network` the network of a name.
    """

    def __init__(
        self,
        tensor: Callable[[int], torch.Tensor],
        picture: Callable[[int], Image.Image],
        network: Callable[[str], torch.nn.Module],
        device: Callable[[str], torch.device],
    ):
        self.tensor, self.picture, self.network, self.device = tensor, picture, network, device
        self.generators: dict[int, torch.Generator] = {}
        self._objects: dict[int, Any] = {}

    def unpack(self, node: Any) -> Any:
        """Return the value of a node; raises `KeyError`, `TypeError` or `ValueError` for one that is none."""
        if isinstance(node, list):
            return [self.unpack(value) for value in node]
        if not isinstance(node, dict):
            return node
        kind = next(iter(node))
        if kind not in KINDS:
            raise ValueError(f"a value of the unknown kind {kind}")
        return getattr(self, f"_{kind}")(node[kind], node)

    def _float(self, text: str, node: Any) -> float:
        return float(text)

    def _tensor(self, number: int, node: Any) -> torch.Tensor:
        return self.tensor(number)

    def _network(self, name: str, node: Any) -> torch.nn.Module:
        return self.network(name)

    def _generator(self, number: int, node: Any) -> torch.Generator:
        if number not in self.generators:
            generator = torch.Generator(self.device(node["device"]))
            generator.set_state(self.unpack(node["state"]).cpu())
            self.generators[number] = generator
        return self.generators[number]

    def _dtype(self, name: str, node: Any) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, name)
        return dtype

    def _device(self, name: str, node: Any) -> torch.device:
        return self.device(name)

    def _size(self, sizes: Sequence[int], node: Any) -> torch.Size:
        return torch.Size(sizes)

    def _array(self, number: int, node: Any) -> np.ndarray:
        array: np.ndarray = self.tensor(number).numpy()
        return array

    def _number(self, number: int, node: Any) -> Any:
        return self.tensor(number).numpy()[()]

    def _picture(self, number: int, node: Any) -> Image.Image:
        return self.picture(number)

    def _missing(self, kind: str, node: Any) -> Missing:
        return Missing(kind)

    def _blank(self, name: str, node: Any) -> BlankOutput:
        return BlankOutput(_kind_named(name), self._named(node["fields"]))

    def _output(self, name: str, node: Any) -> Any:
        return _kind_named(name)(**self._named(node["fields"]))

    def _named(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.unpack(value) for name, value in fields.items()}

    def _of(self, name: str, node: Any) -> Any:
        made = CLASSES[name](**self._named(node["fields"]))
        self._objects[node["number"]] = made
        return made

    def _object(self, number: int, node: Any) -> Any:
        return self._objects[number]

    def _error(self, name: str, node: Any) -> DenoscopeError:
        kind = getattr(errors, name)
        if not (isinstance(kind, type) and issubclass(kind, DenoscopeError)):
            raise TypeError(name)
        return kind(node["text"])

    def _path(self, text: str, node: Any) -> Path:
        return Path(text)

    def _range(self, ends: Sequence[int], node: Any) -> range:
        return range(*ends)

    def _set(self, values: Any, node: Any) -> set[Any]:
        return set(self.unpack(values))

    def _frozenset(self, values: Any, node: Any) -> frozenset[Any]:
        return frozenset(self.unpack(values))

    def _tuple(self, values: Any, node: Any) -> tuple[Any, ...]:
        return tuple(self.unpack(values))

    def _dict(self, pairs: Any, node: Any) -> dict[Any, Any]:
        return {self.unpack(key): self.unpack(value) for key, value in pairs}


# Pictures.


def bytes_of(picture: Image.Image) -> int:
    """Return the bytes of a picture's numbers, which a PNG hardly ever has more of."""
    return picture.width * picture.height * max(len(picture.getbands()), 1) * (4 if picture.mode in ("I", "F") else 1)


def file_of(picture: Image.Image) -> tuple[str, bytes]:
    """Return the end of a picture's file name, and the content."""
    if picture.mode not in IN_PNG:
        return f"{picture.width}x{picture.height}.{picture.mode.replace(';', '_')}", picture.tobytes()
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return "png", content.getvalue()


def picture_of(name: str, content: bytes) -> Image.Image:
    """Return the picture of a file that `file_of` named."""
    if name.endswith(".png"):
        picture = Image.open(io.BytesIO(content))
        picture.load()
        return Image.frombytes(picture.mode, picture.size, picture.tobytes()) if picture.mode != "P" else picture
    _, size, mode = name.rsplit(".", 2)
    width, height = size.split("x")
    return Image.frombytes(mode.replace("_", ";"), (int(width), int(height)), content)


def as_bytes(picture: torch.Tensor | None) -> torch.Tensor | None:
    """Return pictures in [0, 1] as whole numbers of 8 bits if that is what they were made of; else as they are."""
    if picture is None:
        return None
    whole = (picture * 255).round().clamp(0, 255).to(torch.uint8)
    same = picture.dtype == torch.float32 and torch.equal(whole.float() / 255, picture)
    return whole if same else picture


def from_bytes(picture: torch.Tensor | None) -> torch.Tensor | None:
    """Return pictures as they were before `as_bytes`."""
    return picture.float() / 255 if picture is not None and picture.dtype == torch.uint8 else picture
