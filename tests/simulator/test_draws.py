import math

import numpy as np
import pandas as pd
import pytest

from d4lens import simulator
from d4lens.errors import D4LensError, PhysicsError
from d4lens.simulator import Truth, draw, preset

PRESET = preset("deeplense")


def same(a: Truth, b: Truth) -> None:
    for left, right in ((a.images, b.images), (a.subhalos, b.subhalos)):
        pd.testing.assert_frame_equal(
            left.reset_index(drop=True), right.reset_index(drop=True), check_exact=True, check_dtype=False
        )


def rows(truth: Truth, indices: list[int]) -> Truth:
    images = truth.images.set_index("index", drop=False).loc[indices]
    parts = [truth.subhalos[truth.subhalos["path"] == path] for path in images["path"]]
    return Truth(images, pd.concat(parts))


def test_an_image_depends_on_preset_seed_split_and_index_only():
    all_of_them = draw(PRESET, 7, range(40))
    some = [31, 4, 17, 7, 0]
    same(draw(PRESET, 7, some), rows(all_of_them, some))
    for other in (draw(PRESET, 8, some), draw(PRESET, 7, some, split="val"), draw(preset("model-i"), 7, some)):
        assert not np.isclose(other.images["source_x"], rows(all_of_them, some).images["source_x"]).any()
    assert all_of_them.images["theta_E"].nunique() == 40


def test_an_override_leaves_every_other_parameter_as_it_was():
    before, after = (draw(preset("deeplense", o), 3, range(12)) for o in ({}, {"gamma": 0.1, "n_subhalos": 30}))
    changed = [c for c in before.images if not before.images[c].equals(after.images[c])]
    assert changed == ["gamma1", "gamma2", "n_subhalos"]
    path = "train/sphere/1.npy"
    first, more = (t.subhalos[t.subhalos["path"] == path].reset_index(drop=True) for t in (before, after))
    assert (len(first), len(more)) == (25, 30)
    pd.testing.assert_frame_equal(first, more[:25])


def test_a_pair_differs_in_its_substructure_only():
    with_it, without = (draw(PRESET, 5, range(9), which) for which in ("vort", "none"))
    rod = [c for c in with_it.images if c.startswith("rod_")]
    assert with_it.images[rod].notna().all(axis=None)
    assert without.images[rod].isna().all(axis=None)
    rest = [c for c in with_it.images if c not in (*rod, "path", "class")]
    pd.testing.assert_frame_equal(with_it.images[rest], without.images[rest])
    own = draw(PRESET, 5, range(9))
    pd.testing.assert_frame_equal(own.images[rest[:-1]], without.images[rest[:-1]])


def test_classes_take_turns_and_numbers_start_at_one():
    images = draw(PRESET, 0, range(7)).images
    assert images["path"].tolist() == [
        *("train/no/1.npy", "train/sphere/1.npy", "train/vort/1.npy", "train/no/2.npy"),
        *("train/sphere/2.npy", "train/vort/2.npy", "train/no/3.npy"),
    ]
    assert images["class"].tolist() == ["no", "sphere", "vort"] * 2 + ["no"]


def test_substructure_follows_its_priors():
    truth = draw(PRESET, 2, range(1, 900, 3))
    assert (truth.images["class"] == "sphere").all()
    assert (truth.images["n_subhalos"] == 25).all()
    radius = np.hypot(truth.subhalos["x"], truth.subhalos["y"])
    assert radius.between(0.25, 2.0).all()
    assert radius.mean() == pytest.approx(1.125, abs=3 * 1.75 / math.sqrt(12 * len(radius)))
    main = truth.images.set_index("path")["theta_E"].loc[truth.subhalos["path"]].to_numpy()
    np.testing.assert_allclose(truth.subhalos["theta_E"], main * np.sqrt(truth.subhalos["mass"] / 1e12), rtol=1e-11)
    rods = draw(PRESET, 2, range(300), "vort").images
    assert rods["rod_half_length"].between(0.7, 1.85).all()
    assert rods["rod_mass"].between(0.028, 0.058).all()
    assert np.hypot(rods["rod_x"], rods["rod_y"]).between(0.1, 1.3).all()
    np.testing.assert_allclose(rods["rod_theta_E"], rods["theta_E"] * np.sqrt(rods["rod_mass"]), rtol=1e-11)


def test_axes_lie_within_two_pi_degrees_of_x():
    images = draw(PRESET, 4, range(600)).images
    phi = np.degrees(0.5 * np.arctan2(images["gamma2"], images["gamma1"]))
    assert phi.between(-360 / 57.2957 - 1e-9, 1e-9).all()
    assert phi.min() < -6.0
    assert np.hypot(images["gamma1"], images["gamma2"]).between(0, 0.3).all()
    e = (1 - images["source_q"]) / (1 + images["source_q"])
    np.testing.assert_allclose(np.hypot(images["e1"], images["e2"]), e, rtol=1e-10)
    assert images["source_q"].between(0.4, 1.0).all()


def test_tables_survive_csv_to_the_last_bit(tmp_path):
    truth = draw(PRESET, 6, range(12))
    truth.images.to_csv(tmp_path / "truth.csv", index=False)
    truth.subhalos.to_csv(tmp_path / "subhalos.csv", index=False)
    back = Truth.from_csv(tmp_path / "truth.csv", tmp_path / "subhalos.csv")
    same(back, truth)
    (tmp_path / "short.csv").write_text("path,class\na,no\n")
    with pytest.raises(D4LensError, match="theta_E"):
        Truth.from_csv(tmp_path / "short.csv", tmp_path / "subhalos.csv")


def test_subhalos_are_found_whatever_the_order_of_their_table():
    truth = draw(PRESET, 1, range(12))
    shuffled = Truth(truth.images, truth.subhalos.sample(frac=1.0, random_state=0))
    for a, b in zip(truth.subhalo_arrays(), shuffled.subhalo_arrays()):
        np.testing.assert_array_equal(a[:, a[0].argsort()], b[:, b[0].argsort()])
    part = Truth(truth.images.iloc[4:5], truth.subhalos)  # rows of other images are left out
    np.testing.assert_array_equal(part.subhalo_arrays()[0], truth.subhalo_arrays()[4])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seed": -1}, "seed.*-1"),
        ({"seed": 1.5}, "seed.*1.5"),
        ({"indices": [-3]}, "index.*-3"),
        ({"substructure": "axion"}, "substructure.*'axion'"),
        ({"split": "test"}, "split.*'test'"),
        ({"preset": "deeplense"}, "simulate.preset"),
    ],
)
def test_refuses_bad_arguments(arguments, words):
    values = {"preset": PRESET, "seed": 0, "indices": [0], **arguments}
    with pytest.raises(D4LensError, match=words) as caught:
        simulator.draw(**values)
    assert isinstance(caught.value, PhysicsError) == ("seed" in arguments or "indices" in arguments)
