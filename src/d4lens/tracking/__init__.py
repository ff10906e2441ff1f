"""Results copied to MLflow, where they are looked at; the files in metrics/ are what counts.

A run is found again by its fingerprint (of parameters, data and code), so repeating a training or evaluating it later
continues its run instead of making a twin. Nothing here may stop or delay a training: without MLflow, or with a store
that is locked, broken or not writable, one warning is logged, what was to be written is kept, and each later call tries
again, so a store that recovers in time misses nothing.

`python -m d4lens.tracking` opens the UI.
"""

from d4lens.tracking.store import ARTIFACTS, DATABASE, StoreError, uri
from d4lens.tracking.tracker import NOTE, Tracker, enabled, flatten, run_tags
from d4lens.tracking.ui import compare_urls, list_urls

__all__ = [
    "ARTIFACTS",
    "DATABASE",
    "NOTE",
    "StoreError",
    "Tracker",
    "compare_urls",
    "enabled",
    "flatten",
    "list_urls",
    "run_tags",
    "uri",
]
