"""What the studies of sensitivity and mismatch draw, from the tables they write beside the drawings."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from d4lens.results.plots import drawing


def draw_limit(path: str | Path, table: pd.DataFrame, false_positive_rate: float) -> None:
    """Detection rate against the ideal detector's sigma, one line an arm, one panel for each of `images_of`; the other
    columns as of `sensitivity.curve`."""
    sets = list(table["images_of"].unique())[::-1]
    arms = list(table["arm"].unique())
    with drawing(path, (5.2 * len(sets), 4.2)) as figure:
        axes = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
        for axis, name in zip(axes, sets):
            for arm, rows in table[table["images_of"] == name].groupby("arm", sort=False):
                colour, ideal = f"C{arms.index(str(arm))}", arm == "ideal"
                style = {"color": "black", "linestyle": "--"} if ideal else {"color": colour, "marker": "."}
                axis.fill_between(rows["sigma"], rows["low"], rows["high"], color=colour, alpha=0.12, linewidth=0)
                axis.plot(rows["sigma"], rows["rate"], label="ideal: knows place and shape" if ideal else arm, **style)
            axis.axhline(false_positive_rate, color="0.7", linewidth=0.8, linestyle=":")
            axis.set_xscale("symlog", linthresh=1)
            ticks = [0, 1, 2, 5, 10, 20, 50, 100]
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.set(title=name, xlabel="significance of the true substructure", ylim=(-0.02, 1.02))
        axes[0].set_ylabel(f"share detected at {false_positive_rate:.0%} false alarms")
        axes[-1].legend(fontsize="small")


def draw_subhalos(path: str | Path, table: pd.DataFrame) -> None:
    """Detection rate of one subhalo over radius and mass, one panel an arm, from the table of `sensitivity.rates`."""
    arms = list(table["arm"].unique())
    with drawing(path, (3.6 * len(arms), 3.6)) as figure:
        axes = figure.subplots(1, len(arms), sharey=True, squeeze=False)[0]
        for axis, arm in zip(axes, arms):
            rows = table[table["arm"] == arm]
            rate = rows.pivot(index="mass_low", columns="radius_low", values="rate")
            radius = [*rate.columns, rows["radius_high"].max()]
            mass = [*rate.index, rows["mass_high"].max()]
            shown = axis.pcolormesh(radius, mass, rate.to_numpy(), cmap="viridis", vmin=0, vmax=1)
            axis.axvline(1, color="white", linewidth=0.8, linestyle=":")
            axis.set(title=arm, xlabel="radius [theta_E]", yscale="log")
        axes[0].set_ylabel("mass [Msun]")
        figure.colorbar(shown, ax=list(axes), label="detected")


def draw_places(path: str | Path, table: pd.DataFrame, theta_E: float, mass: float) -> None:
    """Detection rate of a subhalo of one mass over its place in one lens; columns arm, x, y (arcsec), rate."""
    arms = list(table["arm"].unique())
    angle = np.linspace(0, 2 * math.pi, 200)
    with drawing(path, (3.6 * len(arms), 3.6)) as figure:
        axes = figure.subplots(1, len(arms), sharey=True, squeeze=False)[0]
        for axis, arm in zip(axes, arms):
            rate = table[table["arm"] == arm].pivot(index="y", columns="x", values="rate")
            shown = axis.pcolormesh(
                rate.columns, rate.index, rate.to_numpy(), cmap="viridis", vmin=0, vmax=1, shading="nearest"
            )
            axis.plot(theta_E * np.cos(angle), theta_E * np.sin(angle), color="white", linewidth=0.8, linestyle=":")
            axis.set(title=f"{arm}, {mass:.1e} Msun", xlabel="x [arcsec]", aspect="equal")
        axes[0].set_ylabel("y [arcsec]")
        figure.colorbar(shown, ax=list(axes), label="detected")


def draw_masses(path: str | Path, table: pd.DataFrame) -> None:
    """Rod mass found against true (arcsec²), one panel an estimator; columns estimator, true, found."""
    estimators = list(table["estimator"].unique())
    end = 1.1 * float(table["true"].max())
    if not estimators:
        estimators, end = ["no rods"], 1.0
    with drawing(path, (3.2 * min(3, len(estimators)), 3.2 * -(-len(estimators) // 3))) as figure:
        axes = figure.subplots(-(-len(estimators) // 3), min(3, len(estimators)), sharey=True, squeeze=False).ravel()
        for axis, name in zip(axes, estimators):
            rows = table[table["estimator"] == name]
            axis.fill_between([0, end], [0, 0.8 * end], [0, 1.2 * end], color="0.9", linewidth=0)
            axis.plot([0, end], [0, end], color="0.5", linewidth=0.8)
            axis.plot(rows["true"], rows["found"], ".", markersize=3)
            axis.set(xlabel="true rod mass [arcsec²]", xlim=(0, end), ylim=(0, end))
            axis.set_title(name, fontsize="small")
        axes[0].set_ylabel("found [arcsec²]")


def draw_mismatch(path: str | Path, table: pd.DataFrame, quantity: str = "auc_macro") -> None:
    """A quantity of every case, one panel an arm, one mark a choice of constants; columns case, constants, arm, quantity,
    value, low, high."""
    rows = table[table["quantity"] == quantity]
    arms, cases = list(rows["arm"].unique()), list(rows["case"].unique())
    with drawing(path, (3.4 * len(arms) + 1.4, 0.32 * len(cases) + 1.2)) as figure:
        axes = figure.subplots(1, len(arms), sharey=True, squeeze=False)[0]
        for axis, arm in zip(axes, arms):
            for index, (constants, marks) in enumerate(rows[rows["arm"] == arm].groupby("constants", sort=False)):
                place = np.array([cases.index(case) for case in marks["case"]]) + 0.2 * (index - 1)
                ends = np.maximum([marks["value"] - marks["low"], marks["high"] - marks["value"]], 0)
                axis.errorbar(marks["value"], place, xerr=ends, fmt="o", markersize=3.5, capsize=0, label=constants)
            axis.set(title=arm, xlabel=quantity.replace("_", " "), xlim=(0.28, 1.02))
            axis.grid(axis="x", alpha=0.3)
        axes[0].set_yticks(range(len(cases)), cases)
        axes[0].invert_yaxis()
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small", title="constants"
        )
