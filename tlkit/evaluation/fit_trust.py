"""What ships beside the weights of how far answers can be trusted: fitted on validation, measured on test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkit.evaluation.answers import Answers
from tlkit.evaluation.calibration import Numbers, fit_calibration, measure_calibration, probabilities, why_uncalibrated
from tlkit.evaluation.promises import NoPromise, choose_threshold, fit_sets, measure_promises
from tlkit.evaluation.unknown import FEWEST_IMAGES, fit_energy, fit_knn, share_above
from tlkit.models.inference.trust import Trust
from tlkit.models.model_folder import ModelCard
from tlkit.recipe.fields.trust import AbstainOptions, UnknownScoreName
from tlkit.terminal import counted


@dataclass(frozen=True)
class TrustOptions:
    """What the recipe asks for."""

    abstain: AbstainOptions | None
    unknown: UnknownScoreName


@dataclass(frozen=True)
class FittedTrust:
    """reasons: what was asked for and can't be given -> why, as a sentence."""

    trust: Trust
    reasons: dict[str, str]


def fit_trust(
    card: ModelCard, validation: Answers, options: TrustOptions, *, training: Callable[[], Answers], groups: Sequence[str] = ()
) -> FittedTrust:
    """Fit temperature, promises and the score of unknown images on validation.

    training: gives the answers on a sample of training images, which only knn needs. groups: of each validation image; see `groups_of`.
    """
    n, fitted = len(validation.labels), Trust()
    reasons: dict[str, str] = {}
    if options.unknown != "off" and n < FEWEST_IMAGES:
        reasons["unknown"] = f"{counted(n, 'validation image')} can't tell a threshold for unknown images; it takes {FEWEST_IMAGES}."
    elif options.unknown != "off":
        fitted = fit_energy(validation) if options.unknown == "energy" else fit_knn(validation, training())
    if why := why_uncalibrated(card.task, card.head):
        return FittedTrust(fitted, {**reasons, "calibration": why})
    fitted = replace(fitted, calibration=fit_calibration(validation, task=card.task, head=card.head))
    if options.abstain is None:
        return FittedTrust(fitted, reasons)
    promised = add_promises(fitted, validation, error=options.abstain.error, coverage=options.abstain.coverage, groups=groups)
    return FittedTrust(promised.trust, reasons | promised.reasons)


def add_promises(
    trust: Trust, validation: Answers, *, error: float | None, coverage: float | None, groups: Sequence[str] = ()
) -> FittedTrust:
    """Choose the threshold and the sets that were asked for, in place of earlier ones; one that can't be promised goes."""
    found = probabilities(validation.logits, trust.temperature)
    return choose_promises(trust, found, validation.labels.numpy(), error=error, coverage=coverage, groups=groups)


def choose_promises(
    trust: Trust, found: Numbers, labels: NDArray[np.int64], *, error: float | None, coverage: float | None, groups: Sequence[str] = ()
) -> FittedTrust:
    """Do so by calibrated probabilities, [N, K]."""
    reasons: dict[str, str] = {}
    if error is not None:
        chosen = choose_threshold(found.max(1), found.argmax(1) == labels, error, groups)
        trust = replace(trust, abstain=None if isinstance(chosen, NoPromise) else chosen)
        reasons |= {"abstain": chosen.reason} if isinstance(chosen, NoPromise) else {}
    if coverage is not None:
        sets = fit_sets(found, labels, coverage, groups)
        trust = replace(trust, conformal=None if isinstance(sets, NoPromise) else sets)
        reasons |= {"conformal": sets.reason} if isinstance(sets, NoPromise) else {}
    return FittedTrust(trust, reasons)


def measure_trust(fitted: FittedTrust, test: Answers) -> dict[str, Any]:
    """Return what it came to on the test split, as plain JSON values: calibration, risk_coverage, abstain, conformal, unknown."""
    trust, reasons = fitted.trust, fitted.reasons
    measured: dict[str, Any] = {name: {"reason": reason} for name, reason in reasons.items() if name != "unknown"}
    if trust.calibration is not None:
        measured |= measure_calibration(test, trust.calibration)
        measured |= measure_promises(trust, test.logits, test.labels.numpy())
    if trust.unknown is not None:
        measured["unknown"] = {"pictures": len(test.labels), "share_above_threshold": share_above(trust, test)}
    return measured
