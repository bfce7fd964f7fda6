"""Every error this package raises on purpose, as one tree.

    EqnetError
    ├── InvalidConfigurationError    a form, bit-width or configuration that the supernet does not have
    ├── InvalidProfileError          a device profile, budget or search setting that makes no sense
    ├── InfeasibleBudgetError        no subnet meets the budget; carries the nearest budget that one meets
    ├── UnsupportedTargetError       a layer cannot be expressed the way the device needs it
    ├── UnknownDeviceError           no such device in the catalogue
    ├── BundleError                  a bundle is missing, damaged, of another schema or architecture
    ├── ArtifactError                an exported file is damaged or not one of ours
    ├── ProofError                   an export does not compute what the supernet simulates
    └── TrainingError                training data or a run folder cannot be used

`code` is stable: the service derives problem types from it and clients may match on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """One thing that is wrong with an input: where (a JSON pointer, RFC 6901) and what to change."""

    pointer: str
    detail: str


class EqnetError(Exception):
    """Root of the tree. `violations` points at the parts of the input that are at fault, if any."""

    code = "eqnet-error"

    def __init__(self, message: str, *, violations: Sequence[Violation] = ()) -> None:
        super().__init__(message)
        self.violations = tuple(violations)


class InvalidConfigurationError(EqnetError, ValueError):
    code = "invalid-configuration"


class InvalidProfileError(EqnetError, ValueError):
    code = "invalid-profile"


class InfeasibleBudgetError(EqnetError, ValueError):
    """`nearest` is the budget closest to the one asked for that some subnet meets (same keys, same units)."""

    code = "infeasible-budget"

    def __init__(
        self, message: str, *, nearest: Mapping[str, float], violations: Sequence[Violation] = ()
    ) -> None:
        super().__init__(message, violations=violations)
        self.nearest = dict(nearest)


class UnsupportedTargetError(EqnetError, ValueError):
    code = "unsupported-target"


class UnknownDeviceError(EqnetError, LookupError):
    code = "unknown-device"


class BundleError(EqnetError):
    code = "invalid-bundle"


class ArtifactError(EqnetError):
    code = "invalid-artifact"


class ProofError(EqnetError):
    code = "export-differs-from-simulation"


class TrainingError(EqnetError):
    code = "training-input"
