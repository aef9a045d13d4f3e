"""Tools for the host: descriptions, profiles, searches."""

from .describe import Description as Description, describe as describe
from .lr_find import LRFinding as LRFinding, lr_find as lr_find
