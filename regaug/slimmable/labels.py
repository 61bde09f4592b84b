"""Symbolic channels: which units along which tensor axes must be kept or dropped together.

A `Channels` is an equivalence class of channel dimensions (union-find). An *axis* is one dimension of one tensor:
`None` when its size is the same at every width, or a list of pieces `(channels, size)` laid end to end, with `None` for
the channels of a fixed piece. A concatenation is therefore an axis of several pieces, and the kept indices of an axis
are the leading indices of *every* piece.
"""

import math
from collections.abc import Callable

MAX_PIECES = 256  # an axis made of more pieces than this stays at full width: resolving it would dominate planning
MAX_CUTS = 10_000

Piece = tuple['Channels | None', int]
Axis = list[Piece] | None


class Channels:
    """A class of channel dimensions that keep the same leading units.

    Attributes:
        units: number of droppable units; a member of size `s` has units of `s // units` channels.
        frozen: every unit is always kept.
        anchored: the class holds output channels of a learnt convolution or projection. Only such classes are slimmed:
            a learnt query or register token is a dimension of a parameter too, but not a width.
        unit_size: the smallest unit among the parameters that belong to the class, in channels.
        reason: why the class is frozen.
    """

    __slots__ = ('anchored', 'children', 'frozen', 'parent', 'reason', 'unit_size', 'units')

    def __init__(self, units: int, anchored: bool = False):
        self.units = units
        self.frozen = units <= 1
        self.anchored = anchored
        self.parent: Channels | None = None
        self.children: list[tuple[Channels, int]] = []  # with the units of this class that each stands for
        self.unit_size = 1
        self.reason = ''

    @property
    def root(self) -> 'Channels':
        root = self
        while root.parent is not None:
            root = root.parent
        if root is not self:
            self.parent = root  # shortens the way for the next time
        return root

    @property
    def slimmable(self) -> bool:
        return self.anchored and not self.frozen

    def freeze(self, reason: str):
        """Keep all units at every width; the first reason given is the one that stays."""
        if not self.frozen:
            self.frozen, self.reason = True, reason

    def coarsen(self, units: int):
        """Make the units larger, so that there are `units` of them; `units` divides the present number."""
        assert self.units % units == 0, (self.units, units)
        self.units = units
        if units <= 1:
            self.freeze('its members share no common unit')

    def merge(self, other: 'Channels'):
        """Become one class with `other`, with units that both can drop."""
        units = math.gcd(self.units, other.units)
        self.coarsen(units)
        other.coarsen(units)
        if other.frozen:
            self.freeze(other.reason)
        self.anchored |= other.anchored
        other.parent = self

    def refine(self, units: int):
        """Divide the class in two after its first `units` units, in every member alike."""
        parts = units, self.units - units
        self.children = [(Channels(part, self.anchored), part) for part in parts]


def new_axis(size: int) -> Axis:
    """Make an axis whose channels are tied to nothing yet."""
    return [(Channels(size), size)] if size > 1 else None


def resolve(axis: Axis) -> list[Piece]:
    """Express an axis in the present classes; neighbouring fixed pieces are merged. `None` gives no pieces."""
    pieces: list[Piece] = []
    for channels, size in axis or []:
        channels = channels and channels.root
        if channels is None or (channels.frozen and not channels.children):
            if pieces and pieces[-1][0] is None:
                size += pieces.pop()[1]
            pieces.append((None, size))
        elif channels.children:
            unit = size // channels.units
            parts = resolve([(child, units * unit) for child, units in channels.children])
            if pieces and pieces[-1][0] is None and parts[0][0] is None:
                parts[0] = (None, pieces.pop()[1] + parts[0][1])
            pieces += parts
        else:
            pieces.append((channels, size))
    if len(pieces) > MAX_PIECES:
        for channels, _ in pieces:
            if channels is not None:
                channels.freeze('its channels fall into too many pieces')
        return [(None, sum(size for _, size in pieces))]
    return pieces


def is_fixed(axis: Axis) -> bool:
    """Say whether all channels of an axis are kept at every width."""
    return all(channels is None for channels, _ in resolve(axis))


def axis_size(axis: list[Piece]) -> int:
    return sum(size for _, size in axis)


def freeze(axis: Axis, reason: str) -> int:
    """Keep all channels of the axis at every width. Returns how many classes this froze."""
    pieces = [channels for channels, _ in resolve(axis) if channels is not None]
    for channels in pieces:
        channels.freeze(reason)
    return len(pieces)


def why_frozen(axis: Axis) -> str:
    """Return the reason why the first frozen class of an axis is frozen; empty if none is."""
    roots = [channels.root for channels, _ in axis or [] if channels is not None]
    reasons = (why_frozen(root.children) if root.children else root.reason for root in roots)
    return next(filter(None, reasons), '')


def anchor(axis: Axis):
    """Mark the axis as output channels of a learnt map."""
    for channels, _ in resolve(axis):
        if channels is not None:
            channels.anchored = True


def cut(axis: list[Piece], position: int) -> tuple[list[Piece], list[Piece]]:
    """Divide an axis at `position`: (left, right). A class cut inside a unit is frozen."""
    while True:
        axis, offset = resolve(axis), 0
        for index, (channels, size) in enumerate(axis):
            if offset == position:
                return axis[:index], axis[index:]
            inside = position - offset
            if inside < size:
                if channels is None:
                    return axis[:index] + [(None, inside)], [(None, size - inside)] + axis[index + 1 :]
                unit = size // channels.units
                if inside % unit:
                    channels.freeze('it is cut inside a group of channels')
                else:
                    channels.refine(inside // unit)
                break
            offset += size
        else:
            return axis, []


def between(axis: Axis, start: int, stop: int) -> Axis:
    """Return the part of an axis from index `start` to index `stop`."""
    return None if is_fixed(axis) else cut(cut(axis, stop)[0], start)[1]


def segments(axis: Axis, count: int, reason: str) -> list[Axis]:
    """Divide an axis into `count` equal parts that keep equally many channels (those of a fixed axis are fixed)."""
    if is_fixed(axis):
        return [None] * count
    step = axis_size(axis) // count
    parts = [between(axis, i * step, (i + 1) * step) for i in range(count)]
    for part in parts[1:]:
        unify(parts[0], part, reason)
    return [between(axis, i * step, (i + 1) * step) for i in range(count)]


def unify(a: Axis, b: Axis, reason: str):
    """Make two axes of equal size keep the same indices; what meets a fixed piece is frozen for `reason`."""
    reason = why_frozen(a) or why_frozen(b) or reason
    if a is None or b is None:
        freeze(b if a is None else a, reason)
        return
    for _ in range(MAX_CUTS):
        a, b = resolve(a), resolve(b)
        offset = 0
        for (channels_a, size_a), (channels_b, size_b) in zip(a, b, strict=False):
            if size_a != size_b:
                break
            if channels_a is None or channels_b is None:
                freeze([(channels_a or channels_b, size_a)], reason)
            elif channels_a.root is not channels_b.root:
                channels_a.root.merge(channels_b.root)
            offset += size_a
        else:
            return
        # The pieces differ in size here: cut the longer one (which refines its class), then align anew.
        longer, shorter = (a, size_b) if size_a > size_b else (b, size_a)
        left, right = cut(longer, offset + shorter)
        a, b = (left + right, b) if longer is a else (a, left + right)
    raise RuntimeError('channel classes do not settle')


class Counts:
    """How many units of each class one particular network keeps.

    Args:
        choose: gives the number of kept units of a slimmable class; asked once per class.
    """

    def __init__(self, choose: Callable[[Channels], int]):
        self._choose = choose
        self._kept: dict[Channels, int] = {}

    def units(self, channels: Channels) -> int:
        """Return how many units of a class are kept."""
        if not channels.slimmable:
            return channels.units
        if channels not in self._kept:
            self._kept[channels] = self._choose(channels)
        return self._kept[channels]

    def ranges(self, axis: Axis, size: int) -> list[tuple[int, int]]:
        """Return the kept indices of an axis as (start, length), adjoining ranges merged."""
        if axis is None:
            return [(0, size)]
        ranges, offset = [], 0
        for channels, piece in resolve(axis):
            length = piece if channels is None else self.units(channels) * (piece // channels.units)
            if ranges and sum(ranges[-1]) == offset:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
            else:
                ranges.append((offset, length))
            offset += piece
        return ranges

    def size(self, axis: Axis, size: int) -> int:
        """Return how many indices of an axis of this full size are kept."""
        return size if axis is None else sum(length for _, length in self.ranges(axis, size))
