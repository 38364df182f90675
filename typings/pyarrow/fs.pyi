# pyarrow ships no types: most of it is compiled, and its compute functions are made at import
from typing import Any

def __getattr__(name: str) -> Any: ...
