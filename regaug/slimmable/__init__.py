"""Sub-networks of smaller width inside any network, without changing it."""

from regaug.slimmable.plan import SlimmablePlan

__all__ = ['SlimmablePlan']
