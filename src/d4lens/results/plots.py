"""ROC and confusion of all arms: the tables behind DVC's plots, and the same as pictures for reading offline."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from d4lens.classes import CLASSES
from d4lens.files import atomic_path
from d4lens.results import metrics, predictions

# Fixed ids and no date: equal curves give equal bytes.
_SVG: Any = {"svg.hashsalt": "d4lens", "svg.fonttype": "none"}


def curves(tables: Mapping[tuple[str, int], pd.DataFrame]) -> pd.DataFrame:
    """Collect the ROC curves of all trainings, of predictions averaged over the views.

    Parameters
    ----------
    tables : Mapping of (str, int) to pandas.DataFrame
        Predictions by (arm, seed).

    Returns
    -------
    pandas.DataFrame
        Columns arm, seed, class, fpr, tpr.
    """
    parts = []
    for (arm, seed), table in tables.items():
        curve = metrics.roc_curves(*predictions.of_view(table, "tta")[1:])
        parts.append(curve.assign(arm=arm, seed=seed)[["arm", "seed", "class", "fpr", "tpr"]])
    return pd.concat(parts, ignore_index=True)


def confusions(tables: Mapping[tuple[str, int], pd.DataFrame]) -> pd.DataFrame:
    """Count the images of all trainings by true and predicted class, averaged over the views.

    Parameters
    ----------
    tables : Mapping of (str, int) to pandas.DataFrame
        Predictions by (arm, seed).

    Returns
    -------
    pandas.DataFrame
        Columns arm, seed, actual, predicted, images.
    """
    rows: list[dict[str, Any]] = []
    for (arm, seed), table in tables.items():
        _, labels, probabilities = predictions.of_view(table, "tta")
        counts = confusion_matrix(labels, probabilities.argmax(1), labels=range(len(CLASSES)))
        rows += [
            {"arm": arm, "seed": seed, "actual": actual, "predicted": predicted, "images": int(counts[i, j])}
            for i, actual in enumerate(CLASSES)
            for j, predicted in enumerate(CLASSES)
        ]
    return pd.DataFrame(rows)


@contextmanager
def drawing(path: str | Path, size: tuple[float, float]) -> Iterator[Figure]:
    """Yield a figure that is written on leaving; equal drawings give equal bytes.

    Parameters
    ----------
    path : str or Path
        The file; its suffix is the format.
    size : tuple of float
        Width and height in inches.

    Yields
    ------
    matplotlib.figure.Figure
        To draw on.
    """
    with mpl.rc_context(_SVG):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, metadata={"Date": None})


def draw_roc(path: str | Path, table: pd.DataFrame) -> None:
    """Draw ROC curves: one panel a class, one colour an arm, one line a seed.

    Parameters
    ----------
    path : str or Path
        The picture.
    table : pandas.DataFrame
        The table of `curves`.
    """
    with drawing(path, (12, 4.4)) as figure:
        axes = figure.subplots(1, len(CLASSES), sharey=True)
        arms = list(table["arm"].unique())
        for axis, name in zip(axes, CLASSES, strict=True):
            axis.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle=":")
            of_class = table[table["class"] == name]
            for (arm, _), curve in of_class.groupby(["arm", "seed"], sort=False):
                axis.plot(curve["fpr"], curve["tpr"], color=f"C{arms.index(arm)}", linewidth=1.2)
            axis.set(title=f"{name} against the rest", xlabel="false positive rate", aspect="equal")
        axes[0].set_ylabel("true positive rate")
        for index, arm in enumerate(arms):
            axes[-1].plot([], [], color=f"C{index}", label=arm)
        axes[-1].legend(loc="lower right", fontsize="small")


def draw_confusion(path: str | Path, table: pd.DataFrame) -> None:
    """Draw confusion matrices: one panel an arm, seeds together, shares of each true class (row).

    Parameters
    ----------
    path : str or Path
        The picture.
    table : pandas.DataFrame
        The table of `confusions`.
    """
    arms = list(table["arm"].unique())
    n_columns = min(3, len(arms))
    n_rows = -(-len(arms) // n_columns)
    with drawing(path, (3.4 * n_columns, 3.4 * n_rows)) as figure:
        axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
        for axis, arm in zip(axes, arms):
            images = table[table["arm"] == arm].pivot_table("images", "actual", "predicted", "sum")
            counts = images.loc[list(CLASSES), list(CLASSES)].to_numpy()
            share = counts / counts.sum(axis=1, keepdims=True)
            axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
            for i in range(len(CLASSES)):
                for j in range(len(CLASSES)):
                    colour = "white" if share[i, j] > 0.5 else "black"
                    axis.text(j, i, f"{share[i, j]:.2f}\n({counts[i, j]})", ha="center", va="center", color=colour)
            ticks = range(len(CLASSES))
            axis.set(title=arm, xlabel="predicted", ylabel="actual")
            axis.set_xticks(ticks, CLASSES)
            axis.set_yticks(ticks, CLASSES)
        for axis in axes[len(arms) :]:
            axis.set_visible(False)
