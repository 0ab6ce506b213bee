"""Every small video pipeline whose denoiser is a transformer."""

from families import clips, heard, moving, told, wan
from families.family import Family

FAMILIES: dict[str, Family] = {
    **wan.FAMILIES,
    **clips.FAMILIES,
    **told.FAMILIES,
    **moving.FAMILIES,
    **heard.FAMILIES,
}
