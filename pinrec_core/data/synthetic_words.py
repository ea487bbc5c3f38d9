"""Two-word names of the synthetic world's topics."""

from __future__ import annotations

_ADJECTIVES = (
    "mossy", "amber", "copper", "velvet", "frosted", "wicker", "marble", "coral", "smoky", "linen", "golden",
    "rustic", "indigo", "woven", "cedar", "misty", "scarlet", "pastel", "ivory", "walnut", "silver", "crimson",
    "dusty", "glazed", "knitted", "lunar", "mellow", "nordic", "opal", "painted", "quilted", "rainy", "sunny",
    "tidal", "umber", "vintage", "willow", "azure", "braided", "cobalt",
)  # fmt: skip
_NOUNS = (
    "lantern", "teapot", "garden", "hallway", "jacket", "mural", "candle", "bicycle", "kitchen", "orchid",
    "sweater", "pottery", "terrace", "blanket", "bookshelf", "necklace", "balcony", "pancake", "sandals",
    "umbrella", "cottage", "mirror", "backpack", "curtain", "fountain", "notebook", "armchair", "window",
    "salad", "canoe", "bracelet", "porch", "kettle", "tapestry", "cabin", "hammock", "bouquet", "desk", "sofa",
    "basket",
)  # fmt: skip

TOPIC_NAMES = tuple(
    f"{_ADJECTIVES[i % len(_ADJECTIVES)]} {_NOUNS[(i + i // len(_ADJECTIVES)) % len(_NOUNS)]}"
    for i in range(len(_ADJECTIVES) * len(_NOUNS))
)
"""All distinct; the first 40 share no word."""
