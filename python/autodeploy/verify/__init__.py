"""verify: what an artifact computes, compared with transformers, and the runtime with the Program's interpreter."""

from .checks import verify, verify_artifact
from .report import Check, Culprit, Report, Wrong

__all__ = ["Check", "Culprit", "Report", "Wrong", "verify", "verify_artifact"]
