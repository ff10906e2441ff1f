"""Negative controls: where nothing can be known, nothing is found."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from d4lens import models
from d4lens.simulator import draw, preset, render


def train_and_score(lenses, labels: torch.Tensor, observation) -> float:
    """Macro AUC on the last third of a tiny equivariant network trained on the first two thirds."""
    network = models.build("d4cnn", observation, channels=["residual", "significance"], fields=[1, 2, 4])
    optimiser = torch.optim.AdamW(network.parameters(), 1e-2)
    split = 2 * len(labels) // 3
    batch = lenses.rows(slice(0, split))
    network.train()
    for _ in range(30):
        optimiser.zero_grad()
        F.cross_entropy(network(batch)["logits"], labels[:split]).backward()
        optimiser.step()
    with torch.inference_mode():
        p = network.eval()(lenses.rows(slice(split, len(labels))))["logits"].softmax(1)
    return float(roc_auc_score(labels[split:], p, multi_class="ovr"))


def test_shuffled_labels_leave_chance_and_true_ones_do_not(lenses, small):
    labels = torch.from_numpy(lenses.labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(4))
    # of 30 test images the macro AUC of chance scatters by 0.07
    assert abs(train_and_score(lenses, labels[order], small) - 0.5) < 0.2
    assert train_and_score(lenses, labels, small) > 0.75


@pytest.fixture(scope="module")
def metadata() -> tuple[np.ndarray, np.ndarray]:
    """Of 600 images what a file's header might tell: theta_E, redshifts, the brightest pixel, the total and the sky."""
    chosen = preset("deeplense")
    truth = draw(chosen, 21, range(600))
    counts = render(truth, chosen).numpy()
    header = truth.images[["theta_E", "z_lens", "z_source"]].to_numpy(float)
    sky = np.concatenate([counts[:, :10, :10].reshape(600, -1), counts[:, -10:, -10:].reshape(600, -1)], 1)
    table = np.column_stack([header, counts.max((1, 2)), counts.sum((1, 2)), sky.mean(1), sky.std(1)])
    return table, truth.images["class"].to_numpy()


@pytest.mark.parametrize(
    "classifier",
    [
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
        RandomForestClassifier(100, min_samples_leaf=5, random_state=1),
    ],
    ids=["logistic", "forest"],
)
def test_metadata_alone_does_not_classify(metadata, classifier):
    table, classes = metadata
    p = cross_val_predict(classifier, table, classes, cv=5, method="predict_proba")
    # of 600 images the macro AUC of chance scatters by about 0.015
    assert roc_auc_score(classes, p, multi_class="ovr") < 0.56
