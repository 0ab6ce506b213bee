"""Tokenizers listened to: each text as the pipeline gives it to them, and the numbers of its tokens."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class TokenizerCall:
    """One call of a tokenizer: its texts, each with its tokens' numbers, and the options of the call."""

    tokenizer: Any
    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    options: dict[str, Any]


def tokenizers_of(pipeline: Any) -> list[Any]:
    """Return the tokenizers of a pipeline, those inside its processors too, each once."""
    parts = list((getattr(pipeline, "components", None) or vars(pipeline)).values())
    inside = [getattr(part, "tokenizer", None) for part in parts]
    tokenizers = [part for part in (*parts, *inside) if hasattr(part, "convert_ids_to_tokens")]
    return list({id(tokenizer): tokenizer for tokenizer in tokenizers}.values())


@contextmanager
def listening_to_tokenizers(pipeline: Any, on_call: Callable[[TokenizerCall], None]) -> Iterator[None]:
    """Call `on_call` after each call of one of the pipeline's tokenizers; they are put back as they were."""
    with ExitStack() as undo:
        for tokenizer in tokenizers_of(pipeline):
            undo.enter_context(_listened(tokenizer, on_call))
        yield


@contextmanager
def _listened(tokenizer: Any, on_call: Callable[[TokenizerCall], None]) -> Iterator[None]:
    """Give one tokenizer a class of its own: Python looks for a call on the class, not on the object."""
    kind = type(tokenizer)

    def called(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        given = {} if text is None else {"text": text}
        encoded = kind.__call__(self, *given.values(), *args, **kwargs)
        call = _call_of(self, text, kwargs, encoded)
        if call is not None and not args:
            on_call(call)
        return encoded

    listened = type(kind.__name__, (kind,), {"__call__": called, "__module__": kind.__module__})
    try:
        object.__setattr__(tokenizer, "__class__", listened)
    except TypeError:  # an object that keeps its class is not listened to; its texts are then found by their tokens
        yield
        return
    try:
        yield
    finally:
        object.__setattr__(tokenizer, "__class__", kind)


def _call_of(tokenizer: Any, text: Any, options: dict[str, Any], encoded: Any) -> TokenizerCall | None:
    texts = (text,) if isinstance(text, str) else text
    ids = encoded.get("input_ids") if hasattr(encoded, "get") else None
    if ids is None or not isinstance(texts, (tuple, list)) or not all(isinstance(one, str) for one in texts):
        return None
    rows = ids.tolist() if hasattr(ids, "tolist") else ids
    if rows and isinstance(rows[0], int):
        rows = [rows]
    numbers = tuple(tuple(int(number) for number in row) for row in rows)
    return TokenizerCall(tokenizer, tuple(texts), numbers, dict(options))
