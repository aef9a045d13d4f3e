"""Tools for the host: descriptions, profiles, searches."""

from ..loop.capsule import examine as examine, save_capsule as save_capsule
from .describe import Description as Description, describe as describe
from .gradcheck import (
    GradientCheck as GradientCheck,
    LeafCheck as LeafCheck,
    check_gradients as check_gradients,
)
from .lr_find import LRFinding as LRFinding, lr_find as lr_find
from .profile import (
    Collective as Collective,
    CompileReport as CompileReport,
    compile_report as compile_report,
    profile_step as profile_step,
)
from .replay import Birth as Birth, Replay as Replay, find_nonfinite as find_nonfinite, replay as replay
