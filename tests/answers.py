"""What the command line makes of paths, for tests of what it answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d4lens.data import images
from d4lens.inference.pipeline import Answer, classify, fit_sources, load_classifier


def predict_paths(paths: Sequence[str | Path], weights: str | Path | None = None, **how: Any) -> Answer:
    """`d4lens predict`."""
    classifier = load_classifier(weights)
    return classify(list(images.find(paths)), classifier, **how)


def fit_paths(paths: Sequence[str | Path], **how: Any) -> Answer:
    """`d4lens fit`."""
    return fit_sources(list(images.find(paths)), **how)
