"""The three classes, in the order of every label, logit and probability in the project."""

CLASSES = ("no", "sphere", "vort")
