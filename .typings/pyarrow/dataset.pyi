# pyarrow ships no types
from typing import Any

def __getattr__(name: str) -> Any: ...

class Dataset:
    def __getattr__(self, name: str) -> Any: ...
