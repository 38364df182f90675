from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axis import Axis

Numbers = np.ndarray | Sequence[int] | Sequence[float]

class Spine:
    def set_visible(self, visible: bool) -> None: ...
    def set_color(self, color: str) -> None: ...

class Spines:
    def __getitem__(self, name: str | list[str]) -> Spine: ...

class Axes:
    xaxis: Axis
    yaxis: Axis
    spines: Spines
    # of what is not listed here
    def __getattr__(self, name: str) -> Any: ...
    def plot(
        self,
        x: Numbers,
        y: Numbers,
        fmt: str = ...,
        *,
        alpha: float | None = ...,
        color: str = ...,
        drawstyle: str = ...,
        label: str | None = ...,
        linestyle: str = ...,
        linewidth: float = ...,
        marker: str | None = ...,
        markeredgewidth: float = ...,
        markersize: float = ...,
        rasterized: bool = ...,
        zorder: float = ...,
    ) -> object: ...
    def axhline(
        self, y: float, *, color: str = ..., linestyle: str = ..., linewidth: float = ..., label: str | None = ...
    ) -> object: ...
    def axvline(
        self, x: float, *, color: str = ..., linestyle: str = ..., linewidth: float = ..., label: str | None = ...
    ) -> object: ...
    def bar(self, x: Numbers, height: Numbers, width: float = ..., *, color: str | Sequence[str] = ...) -> object: ...
    def errorbar(
        self,
        x: Numbers,
        y: Numbers,
        yerr: Numbers | Sequence[np.ndarray],
        *,
        fmt: str,
        color: str,
        markersize: float,
        capsize: float,
        linewidth: float,
        elinewidth: float,
    ) -> object: ...
    def stairs(
        self,
        values: Numbers,
        edges: Numbers,
        *,
        fill: bool = ...,
        color: str = ...,
        alpha: float | None = ...,
        linewidth: float = ...,
        label: str | None = ...,
    ) -> object: ...
    def imshow(self, values: np.ndarray, *, cmap: str, vmin: float, vmax: float) -> object: ...
    def text(
        self,
        x: float,
        y: float,
        s: str,
        *,
        ha: str = ...,
        va: str = ...,
        fontsize: float = ...,
        color: str = ...,
        transform: object = ...,
    ) -> object: ...
    def legend(
        self,
        *,
        loc: str,
        fontsize: float,
        frameon: bool,
        framealpha: float = ...,
        edgecolor: str = ...,
        labelcolor: str = ...,
        bbox_to_anchor: tuple[float, float] = ...,
        ncols: int = ...,
    ) -> object: ...
    def grid(self, visible: bool, *, color: str = ..., linewidth: float = ...) -> None: ...
    def set_axisbelow(self, below: bool) -> None: ...
    def set_facecolor(self, color: str) -> None: ...
    def set_xlabel(self, label: str, *, fontsize: float, color: str) -> object: ...
    def set_ylabel(self, label: str, *, fontsize: float, color: str) -> object: ...
    def set_xlim(self, left: float, right: float) -> object: ...
    def set_ylim(self, bottom: float = ..., top: float = ...) -> object: ...
    def set_xticks(
        self, ticks: Numbers | range, labels: Sequence[str] | None = ..., *, rotation: float = ..., ha: str = ...
    ) -> object: ...
    def set_yticks(self, ticks: Numbers | range, labels: Sequence[str] | None = ...) -> object: ...
    def set_xticklabels(self, labels: Sequence[str]) -> object: ...
    def set_yscale(self, value: str) -> None: ...
    def tick_params(self, *, labelsize: float, colors: str, color: str) -> None: ...
