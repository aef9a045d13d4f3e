"""Tools for the host: descriptions, profiles, searches."""

from .._core.public import surface
from ..run.capsule import examine as examine, save_capsule as save_capsule
from ..run.record import RunRecord as RunRecord, read_run as read_run
from ..show.describe import Description as Description, describe as describe
from .births import Birth as Birth, find_nonfinite as find_nonfinite
from .causes import Diagnosis as Diagnosis, Finding as Finding, diagnose as diagnose
from .collectives import Collective as Collective
from .compare import Comparison as Comparison, compare as compare
from .compile_report import CompileReport as CompileReport, compile_report as compile_report
from .coord_check import Coordinates as Coordinates, coord_check as coord_check
from .curvature import Curvature as Curvature, curvature as curvature
from .fit_memory import FittedMemory as FittedMemory, fit_memory as fit_memory
from .gradcheck import (
    GradientCheck as GradientCheck,
    LeafCheck as LeafCheck,
    check_gradients as check_gradients,
)
from .lr_find import LRFinding as LRFinding, lr_find as lr_find
from .profile import Profile as Profile, profile_step as profile_step
from .replay import Replay as Replay, ReplayedStep as ReplayedStep, replay as replay
from .report import report as report
from .timeline import trace as trace

__all__ = [
    "Birth",
    "Collective",
    "Comparison",
    "CompileReport",
    "Coordinates",
    "Curvature",
    "Description",
    "Diagnosis",
    "Finding",
    "FittedMemory",
    "GradientCheck",
    "LRFinding",
    "LeafCheck",
    "Profile",
    "Replay",
    "ReplayedStep",
    "RunRecord",
    "check_gradients",
    "compare",
    "compile_report",
    "coord_check",
    "curvature",
    "describe",
    "diagnose",
    "examine",
    "find_nonfinite",
    "fit_memory",
    "lr_find",
    "profile_step",
    "read_run",
    "replay",
    "report",
    "save_capsule",
    "trace",
]

surface(__name__)
