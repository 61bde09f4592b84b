"""Sub-networks of smaller width inside any network, without changing it."""

from regaug.slimmable.plan import SlimmablePlan
from regaug.slimmable.rounding import kept_units
from regaug.slimmable.twin import Twin, calibrate, extract

__all__ = ['SlimmablePlan', 'Twin', 'calibrate', 'extract', 'kept_units']
