"""The three classes, in the order of every label, logit and probability in the project."""

CLASSES = ("no", "sphere", "vort")
VIEWS = ("plain", "tta")
"""How a network looks at an image: as it is, and averaged over the eight symmetries of the square."""
