import pytest

from d4lens.errors import D4LensError
from d4lens.params import (
    ArmParams,
    GridParams,
    LossWeights,
    NetworkParams,
    Training,
    check_group,
    of_training,
    trainings,
    unreached,
)

SHARED = {
    **{"batch_size": 8, "learning_rate": None, "epochs": None, "weight_decay": 0.01, "warmup_fraction": 0.1},
    **{
        "gradient_clip": 1.0,
        "label_smoothing": 0.0,
        "augment": True,
        "precision": "auto",
        "presets": None,
        "limit": None,
    },
    "losses": dict.fromkeys(LossWeights.model_fields, 0.5),
}
NETWORK = NetworkParams(learning_rate=5e-3)


def made(training=None, arm=None, shared=None, profile=None):
    training = training or Training("d4cnn", 0)
    arm = ArmParams(network="d4cnn", train=arm or {})
    return of_training(training, arm, NETWORK, SHARED | (shared or {}), {"epochs": 4} | (profile or {}), "here")


def test_a_network_brings_its_rate_and_a_profile_its_epochs():
    assert (made().learning_rate, made().epochs, made().limit) == (5e-3, 4, None)


def test_a_rate_or_epochs_set_for_all_reach_an_arm_without_its_own_and_no_other():
    for_all = {"learning_rate": 1e-3, "epochs": 9}
    assert [made(shared=for_all).learning_rate, made(shared=for_all).epochs] == [1e-3, 9]
    own = made(shared=for_all, arm={"learning_rate": 2e-3, "epochs": 30})
    assert [own.learning_rate, own.epochs] == [2e-3, 30]


def test_a_profile_changes_what_all_share_and_an_arm_what_its_profile_says():
    assert made(profile={"precision": "32-true"}).precision == "32-true"
    arm = {"precision": "bf16-mixed", "losses": {"poisson": 0.0}}
    changed = made(profile={"precision": "32-true"}, arm=arm)
    assert changed.precision == "bf16-mixed"
    assert (changed.losses.poisson, changed.losses.sparsity) == (0.0, 0.5)


def test_a_grid_s_limit_and_epochs_come_last():
    limited = made(Training("d4cnn", 0, 300, 30), arm={"epochs": 2, "limit": 7})
    assert (limited.limit, limited.epochs) == (300, 30)


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"epoch": 3}, "unknown key 'epoch' in here"),
        ({"losses": 3}, "'losses'"),
        ({"epochs": 0}, "value 0 for 'epochs'"),
    ],
)
def test_a_mistake_of_an_arm_is_one_sentence(arm, said):
    with pytest.raises(D4LensError, match=said):
        made(arm=arm)


def test_a_grid_is_every_arm_at_every_limit_with_every_seed():
    grid = GridParams(arms=["a", "b"], seeds=[0, 1], limits={300: 30, 1000: 15})
    found = trainings([GridParams(arms=["a"], seeds=[0]), grid])
    assert list(found) == ["a-0", *(f"{m}_{n}-{s}" for m in "ab" for n in (300, 1000) for s in (0, 1))]
    assert found["b_300-1"] == Training("b", 1, 300, 30)
    assert found["a-0"].limit is None
    with pytest.raises(D4LensError, match="two grids of the profile hold a_300-0"):
        trainings([grid, grid])


def test_a_grid_without_arms_is_refused():
    with pytest.raises(D4LensError, match="'arms' in grid 'x'"):
        check_group(GridParams, {"arms": [], "seeds": [0]}, "grid 'x'")


def test_whom_a_value_for_all_does_not_reach_is_named():
    arms = {
        "plain": ArmParams(network="d4cnn"),
        "long": ArmParams(network="d4cnn", train={"epochs": 30, "learning_rate": 1e-3}),
    }
    all_of = [Training("plain", 0), Training("long", 0), Training("long", 1), Training("plain", 0, 300, 8)]
    assert unreached(all_of, arms, SHARED) == []
    assert unreached(all_of, arms, SHARED | {"epochs": 2}) == [
        "train.epochs = 2 does not reach those that set their own: long (30), plain_300 (8)"
    ]
    assert unreached(all_of[:1], arms, SHARED | {"epochs": 2}) == []
    (rate,) = unreached(all_of, arms, SHARED | {"learning_rate": 0.01})
    assert rate.endswith("set their own: long (0.001)")


def test_an_arm_trains_for_the_epochs_that_its_profile_names():
    grid = GridParams(arms=["a", "b"], seeds=[0], epochs={"b": 18})
    assert [training.epochs for training in trainings([grid]).values()] == [None, 18]
