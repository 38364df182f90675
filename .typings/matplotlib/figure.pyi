from collections.abc import Sequence
from typing import IO, Literal, overload

import numpy as np
from matplotlib.axes import Axes

class Figure:
    def __init__(self, *, figsize: tuple[float, float], dpi: float, layout: str, facecolor: str) -> None: ...
    @overload
    def subplots(self) -> Axes: ...
    @overload
    def subplots(
        self, nrows: int, ncols: int, *, squeeze: Literal[False], height_ratios: Sequence[float] | None
    ) -> np.ndarray: ...
    def savefig(
        self, fname: IO[bytes], *, format: str, dpi: float, metadata: dict[str, str | None] | dict[str, None]
    ) -> None: ...
