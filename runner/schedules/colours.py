"""The colour of every schedule type: the same in every figure and in MLflow, and no two alike."""

from .zoo import TYPES

COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#87003C", "#0000FF", "#87E1A5",
    "#690096", "#8778FF", "#964B2D", "#B41E78", "#2DE1FF", "#A5B487", "#D2D24B", "#D200B4", "#FF3C69", "#695AE1",
    "#4B00C3", "#FF78D2",
)  # fmt: skip
"""Okabe and Ito's, then each as far as can be from all before it, for people with and without red and green (Machado
et al. 2009) in OKLab. What two share for some eyes, the line style tells apart."""
COMMON = ("cosine", "linear", "one_cycle", "wsd", "step", "constant", "exponential")
"""The types that stand side by side most often: the colours that are easiest to tell apart."""


def place(kind: str) -> int:
    """The place of a schedule type in a list of all."""
    return list(dict.fromkeys([*COMMON, *TYPES, "custom"])).index(kind)


def colour(kind: str) -> str:
    """The colour of a schedule type, as hexadecimal digits."""
    return COLOURS[place(kind) % len(COLOURS)]
