"""What part of a picture a unit of a layer sees: its receptive field, along one axis."""

from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from math import ceil, floor


@dataclass(frozen=True)
class Window:
    """Unit i of an axis sees the pixels from `stride` i + `low` to `stride` i + `high`, as far as they are there.

    Attributes:
        stride: how far apart the windows of neighbouring units are, in pixels.
        low, high: the first and last pixel that unit 0 sees; padding lies below 0 and beyond the picture.
    """

    stride: Fraction = Fraction(1)
    low: Fraction = Fraction(0)
    high: Fraction = Fraction(0)

    @property
    def size(self) -> int:
        """The receptive field, in pixels; above a transposed convolution at most this."""
        return floor(self.high - self.low) + 1

    def at(self, unit: int) -> tuple[int, int]:
        """The first and the last pixel that a unit sees, padding included."""
        return ceil(self.stride * unit + self.low), floor(self.stride * unit + self.high)

    def through(self, kernel: int, stride: int = 1, dilation: int = 1, padding: int = 0) -> "Window":
        """Above a kernel, whose output j reads the inputs stride j - padding + dilation t, 0 <= t < kernel.

        Source: Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill, 2019.
        """
        low = self.low - self.stride * padding
        return Window(self.stride * stride, low, low + self.stride * dilation * (kernel - 1) + self.high - self.low)

    def through_transposed(self, kernel: int, stride: int, dilation: int, padding: int) -> "Window":
        """Above a transposed convolution, whose input i goes into the outputs stride i - padding + dilation t."""
        step = self.stride / stride
        return Window(step, self.low + step * (padding - dilation * (kernel - 1)), self.high + step * padding)


def union(windows: list[Window]) -> Window:
    """The smallest window around those of units that are added, multiplied or stacked."""
    assert len({window.stride for window in windows}) == 1, "branches that meet have gone the same way down"
    return reduce(lambda a, b: Window(a.stride, min(a.low, b.low), max(a.high, b.high)), windows)


def padding_before(mode: str, size: int, kernel: int, stride: int, dilation: int) -> int:
    """How many zeros TensorFlow puts in front of an axis of a given size."""
    if mode == "valid":
        return 0
    assert mode == "same", mode
    return max((-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0) // 2
