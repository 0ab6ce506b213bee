"""The places of equal cells on a sheet."""

from typing import NamedTuple

Fractions = tuple[float, float, float, float]
"""Left, bottom, width and height as fractions of a figure, as matplotlib takes them."""


class Sheet(NamedTuple):
    """Equal cells in straight rows and columns, between margins; all lengths in one unit, inches or pixels."""

    rows: int
    columns: int
    width: float
    height: float
    gap: float
    left: float
    bottom: float
    right: float
    top: float
    least_width: float

    @property
    def cells(self) -> tuple[float, float]:
        """The width and height of all cells together, with the gaps between them."""
        return self.columns * (self.width + self.gap) - self.gap, self.rows * (self.height + self.gap) - self.gap

    @property
    def size(self) -> tuple[float, float]:
        """The width and height of the whole sheet."""
        width, height = self.cells
        return max(self.least_width, self.left + width + self.right), self.top + height + self.bottom

    def corner(self, row: int, column: int) -> tuple[float, float]:
        """Return x and y of a cell's upper left corner, counted from the first cell's."""
        return column * (self.width + self.gap), row * (self.height + self.gap)

    def box(self, row: int, column: int, width: float | None = None) -> Fractions:
        """Return the box of a cell, or of what is `width` wide in its place.

        >>> sheet = Sheet(1, 2, 40, 30, 0, left=10, bottom=10, right=10, top=20, least_width=0)
        >>> sheet.size, sheet.box(0, 1)
        ((100, 60), (0.5, 0.16666666666666663, 0.4, 0.5))
        """
        x, y = self.corner(row, column)
        return self.fractions(self.left + x, self.top + y, self.width if width is None else width, self.height)

    def fractions(self, x: float, y: float, width: float, height: float) -> Fractions:
        """Return the box of an area whose upper left corner is x and y away from the sheet's."""
        across, down = self.size
        return x / across, 1 - (y + height) / down, width / across, height / down
