"""All families by their names."""

from families import (
    transformers,
    unets,
    unets_embeddings,
    unets_extended,
    unets_pixels,
    unets_rare,
    unets_video,
    videos,
)
from families.family import Family

FAMILIES: dict[str, Family] = {
    name: family
    for module in (
        unets,
        unets_extended,
        unets_rare,
        unets_pixels,
        unets_embeddings,
        unets_video,
        transformers,
        videos,
    )
    for name, family in module.FAMILIES.items()
}
