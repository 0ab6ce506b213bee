"""Every small picture pipeline whose denoiser is a transformer."""

from families import crossed, further, joint, packed, qwen, sequences
from families.family import Family

FAMILIES: dict[str, Family] = {
    **joint.FAMILIES,
    **packed.FAMILIES,
    **qwen.FAMILIES,
    **crossed.FAMILIES,
    **sequences.FAMILIES,
    **further.FAMILIES,
}
