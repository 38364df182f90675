from collections.abc import Callable

from matplotlib.ticker import MaxNLocator

class Axis:
    def set_major_locator(self, locator: MaxNLocator) -> None: ...
    def set_major_formatter(self, formatter: Callable[[float, int], str]) -> None: ...
