"""Why a run went as it did: rules with a number, a threshold and advice, a file a family."""

from ..._core.public import surface
from .diagnosis import Diagnosis as Diagnosis, Finding as Finding, diagnose as diagnose

__all__ = ["Diagnosis", "Finding", "diagnose"]

surface(__name__)
