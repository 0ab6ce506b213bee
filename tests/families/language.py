"""Language models as text encoders: a tokenizer for their chats, and models of a few thousand weights."""

from functools import cache
from typing import Any

import small
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers

CHAT_WORDS = """
system user assistant Describe the image by detailing color shape size texture quantity text spatial relationships of
objects and background video following aspects main content theme Actions events behaviors temporal physical movement
changes environment light style atmosphere camera angles movements transitions used in You are a prompt engineer an
designed to generate superior images with degree alignment based on textual prompts or Prompt Start As captioning
expert descriptive suitable for input model text-to-image AI that reasons about descriptions give structured responses
focusing object attribution without speculation , . : ; ' \" - ( ) < > 1 2 3 4 5 detail how moves shakes describe zoom
view angle whether it follows location characters their action dynamism presented Name visual professional footage
generated some kind animation game scren effects postprocessing if they Pay attention order key actions shown scene
The helpful is
"""
SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<think>", "</think>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<bos>",
]  # fmt: skip
CHAT = """
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{% if part.type == 'text' %}{{ part.text }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""


@cache
def vocabulary() -> dict[str, int]:
    """Special tokens, bytes, and every word of the bundled tokenizer whole: at the start of a text and within it."""
    bundled = (piece.removesuffix("</w>") for piece in small.tokenizer().get_vocab() if piece.endswith("</w>"))
    whole = sorted({*bundled, *CHAT_WORDS.split()})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*SPECIAL, *alphabet, *whole, *(f"Ġ{word}" for word in whole)])
    return {token: number for number, token in enumerate(tokens)}


def words(begin: str | None = None, length: int = 512, side: str = "right") -> transformers.PreTrainedTokenizerFast:
    """A tokenizer with a chat, as Qwen's; `begin` is the token that it puts before a text."""
    rules = tokenizers.Tokenizer(models.BPE(vocab=vocabulary(), merges=[], ignore_merges=True))
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    if begin is not None:
        rules.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, vocabulary()[begin])]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=rules,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        bos_token=begin,
        additional_special_tokens=[token for token in SPECIAL if token not in ("<|endoftext|>", "<|im_end|>", begin)],
        chat_template=CHAT,
        model_max_length=length,
        padding_side=side,
    )


SIZES: dict[str, Any] = dict(
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=2048,
)


def language_model(kind: str, ending: str = "Model", **options: Any) -> torch.nn.Module:
    """A small language model, as "Gemma2", "Llama" or "Qwen3", for the tokens of `words`."""
    ids = dict(pad_token_id=0, eos_token_id=vocabulary()["<|im_end|>"], bos_token_id=vocabulary()["<bos>"])
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **ids, "vocab_size": len(vocabulary()), **options})
    return getattr(transformers, f"{kind}{ending}")(config).eval()


def qwen_vl() -> transformers.Qwen2_5_VLForConditionalGeneration:
    """A small Qwen2.5-VL, which reads text and pictures."""
    tokens = vocabulary()
    text = dict(
        **{name: size for name, size in SIZES.items() if name != "head_dim"},
        vocab_size=len(tokens),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=tokens["<|im_end|>"],
    )
    vision = dict(
        depth=2, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32, window_size=28,
        fullatt_block_indexes=[1], patch_size=14,
    )  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokens["<|image_pad|>"],
        video_token_id=tokens["<|video_pad|>"],
        vision_start_token_id=tokens["<|vision_start|>"],
        vision_end_token_id=tokens["<|vision_end|>"],
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config).eval()


def mistral_vl() -> transformers.Mistral3ForConditionalGeneration:
    """A small Mistral 3, which reads text and pictures."""
    config = transformers.Mistral3Config(
        text_config=transformers.MistralConfig(
            **{**SIZES, "num_hidden_layers": 3}, vocab_size=len(vocabulary()), pad_token_id=0, bos_token_id=None
        ),
        vision_config=transformers.PixtralVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ),
        image_token_id=vocabulary()["<|image_pad|>"],
    )
    return transformers.Mistral3ForConditionalGeneration(config).eval()


def qwen_3_vl(layers: int = 2, ending: str = "Model") -> torch.nn.Module:
    """A small Qwen3-VL, which reads text and pictures."""
    tokens = vocabulary()
    text = dict(
        **{**SIZES, "num_hidden_layers": layers},
        vocab_size=len(tokens),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=tokens["<|im_end|>"],
    )
    vision = dict(
        depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32, patch_size=14,
        deepstack_visual_indexes=[0], num_position_embeddings=16,
    )  # fmt: skip
    config = transformers.Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokens["<|image_pad|>"],
        video_token_id=tokens["<|video_pad|>"],
        vision_start_token_id=tokens["<|vision_start|>"],
        vision_end_token_id=tokens["<|vision_end|>"],
    )
    return getattr(transformers, f"Qwen3VL{ending}")(config).eval()


def long_clip() -> transformers.CLIPTextModel:
    """A small text tower of CLIP for texts that are padded to 77 tokens."""
    config = transformers.CLIPTextConfig(**{**small.clip_text().config.to_dict(), "max_position_embeddings": 77})
    return transformers.CLIPTextModel(config).eval()


def bert() -> transformers.BertModel:
    """A small BERT for the tokens of `words`."""
    sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    return transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=len(vocabulary()))).eval()


class Reader:
    """Qwen's processor without its part for videos, which needs torchvision: tokens of text, and patches of pictures.

    A prompt has one `<|image_pad|>` a picture; it becomes as many as the picture has patches that the model sees.
    """

    def __init__(self) -> None:
        self.tokenizer = words()
        self.image_processor = small.processor_named("Qwen2VL")(min_pixels=28 * 28, max_pixels=56 * 56)

    def __call__(self, text: list[str], images: Any = None, **options: Any) -> transformers.BatchFeature:
        seen = {} if images is None else self.image_processor(images=images, return_tensors="pt")
        for grid in seen.get("image_grid_thw", []):
            number = int(grid.prod()) // self.image_processor.merge_size**2
            text = [prompt.replace("<|image_pad|>", "<|seen|>" * number, 1) for prompt in text]
        read = self.tokenizer([prompt.replace("<|seen|>", "<|image_pad|>") for prompt in text], **options)
        kinds = (read["input_ids"] == vocabulary()["<|image_pad|>"]).long()
        return transformers.BatchFeature({**read, **seen, "mm_token_type_ids": kinds})

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> list[list[int]]:
        """Return the tokens of one conversation, in a batch of its own."""
        return [self.tokenizer.apply_chat_template(messages, **options)]
