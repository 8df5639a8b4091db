"""Labels and outliers, by features of each picture: what the pretrained network makes of it, or its pixels.

    mislabels   a logistic regression says, of each picture, how probable each class is, having learned from the other
                pictures only. Confident learning (Northcutt et al., 2021) finds those whose label is unlikely beside
                what is usual for their class; of these, the ones are kept whose label is next to impossible.
    outliers    the cosine distance to the tenth of the nearest neighbours (Ramaswamy, Rastogi and Shim, 2000), so that
                a few pictures which are odd in the same way do not hide one another.

Shape letters: N pictures, D features, C classes.
"""

import warnings

import numpy as np

from pipeline.audit_findings import Mark
from pipeline.duplicates import unit

UNLIKELY = 0.15
"""A label of at most this probability is reported. A regression of 88 % accuracy, on 397 photographs of ants and bees,
gives it to 3 of them, whose labels are arguable; of labels turned at random, to half of 20 and to a third of 40."""
FAR = 4.0
"""Robust standard deviations of the log distance from its median, above which a picture is an outlier. Of the same
photographs the farthest is 3.8 away; noise of many kinds, text and a gradient among them are 4.2 to 5.5 away."""
LEAST = 20
"""Pictures that are needed to say what is usual."""

_FOLDS = 5  # and so the least number of pictures of a class
_REPEATS = 3  # of dividing the pictures into folds: one division gives chance more to say
_NEIGHBOURS = 10
_LEAST_LOG = 0.1  # The least that a robust standard deviation of the log distance is taken to be.
_DIMENSIONS = 256  # Features beyond these, by variance, cost time and say little.
_PRIOR = 1.6  # The standard deviation that logits are taken to have before any picture is seen.
_STEPS = 200


def evened(embeddings: np.ndarray) -> np.ndarray:
    """Square roots with the embeddings' signs, on unit length: float [N, D]. Else a few strong features decide.

    Perronnin, Sánchez and Mensink (2010), "Improving the Fisher kernel for large-scale image classification".
    """
    return unit(np.sign(embeddings) * np.sqrt(np.abs(embeddings)))


def mislabels(features: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> list[Mark]:
    """Pictures that look as if they were of another class.

    Args:
        features: float [N, D].
        labels: int [N] in 0..C-1. Classes of fewer than five pictures are left out, as there is too little to judge by.
        classes: C names.
    """
    from cleanlab.filter import find_label_issues

    judged = np.flatnonzero(np.bincount(labels, minlength=len(classes))[labels] >= _FOLDS)
    names, given = np.unique(labels[judged], return_inverse=True)
    if len(judged) < LEAST or len(names) < 2:
        return []
    probabilities = _out_of_sample(features[judged], given)
    own = probabilities[np.arange(len(given)), given]
    issues = find_label_issues(given, probabilities, filter_by="confident_learning", n_jobs=1)
    marks = []
    for place in np.flatnonzero(issues & (own <= UNLIKELY)):
        likely = int(probabilities[place].argmax())
        why = (
            f"looks like {classes[names[likely]]} ({probabilities[place, likely]:.2f}) rather than "
            f"{classes[names[given[place]]]} ({own[place]:.2f})"
        )
        marks.append(Mark("likely mislabel", int(judged[place]), 1 - float(own[place]), why))
    return marks


def outliers(features: np.ndarray) -> list[Mark]:
    """Pictures that are like no other: `features` is float [N, D]."""
    from sklearn.neighbors import NearestNeighbors

    if len(features) < LEAST:
        return []
    # Of unit vectors the cosine distance is half the squared Euclidean one, which scikit-learn finds four times sooner.
    nearest = NearestNeighbors(n_neighbors=_NEIGHBOURS, algorithm="brute").fit(unit(features))
    distances = nearest.kneighbors()[0][:, -1] ** 2 / 2
    away = np.log(np.maximum(distances, 1e-6))
    away -= np.median(away)
    away /= max(1.4826 * float(np.median(np.abs(away))), _LEAST_LOG)
    usual = np.median(distances)
    return [
        Mark("outlier", row, float(away[row]), f"distance {distances[row]:.2f}, the median is {usual:.2f}")
        for row in np.flatnonzero(away > FAR).tolist()
    ]


def _out_of_sample(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [N, C]: probabilities from models that did not learn from the picture itself."""
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from threadpoolctl import threadpool_limits

    if min(features.shape) > _DIMENSIONS:
        features = PCA(_DIMENSIONS, random_state=0).fit_transform(features)
    features = features - features.mean(axis=0)
    # A weight's prior variance is scikit-learn's C. Of weights w and features x, w · x has the variance C Σ var(x).
    regression = LogisticRegression(C=_PRIOR**2 / max(float(features.var(axis=0).sum()), 1e-12), max_iter=_STEPS)
    # Of such small products each is sooner done by one thread than shared out to several.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # What further steps change is far below UNLIKELY.
        divisions = [StratifiedKFold(_FOLDS, shuffle=True, random_state=repeat) for repeat in range(_REPEATS)]
        each = [
            cross_val_predict(regression, features, labels, cv=folds, method="predict_proba") for folds in divisions
        ]
        return np.asarray(np.mean(each, axis=0))
