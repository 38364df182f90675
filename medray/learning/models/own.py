"""A model from a folder of one's own: `kind = "python:package.module:function"`, a function that makes the network.

The source is read from the working directory, where run files' paths start from, and its digest is part of the model: the
bundle keeps it, and other source is refused. It is imported only where a run file names it: by `model.kind` in training,
by `trust` in scoring and evaluation; never because a bundle says so. Workers import what the driver has read, so all nodes
run the same source, and the folder need not be there.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PrivateAttr

from medray.errors import BundleError, RunFileError, UserError
from medray.learning.models.base import ModelBase
from medray.modalities.inputs import Inputs
from medray.storage import sent

if TYPE_CHECKING:
    from torch import nn

PREFIX = "python:"
_NAME = r"[A-Za-z_]\w*"
OWN_KIND = rf"^python:{_NAME}(\.{_NAME})*:{_NAME}$"


@dataclass(frozen=True)
class OwnCode:
    """The source of one module file, or of a package with all that lies in it, and the function that is asked for."""

    kind: str
    """As the run file has it."""
    files: tuple[tuple[str, bytes], ...]
    """Paths below the folder, sorted, and what the files hold."""
    folder: str
    """Where they were read, for tracebacks."""

    @property
    def module(self) -> str:
        return self.kind.removeprefix(PREFIX).partition(":")[0]

    @property
    def digest(self) -> str:
        """16 hex digits of SHA-256 of the files' paths and contents."""
        whole = hashlib.sha256()
        for path, content in self.files:
            whole.update(f"{path}\0{len(content)}\0".encode() + content)
        return whole.hexdigest()[:16]

    @classmethod
    def read(cls, kind: str, folder: Path | None = None) -> OwnCode:
        """The source that `kind` names: of what came along with a submitted job, else below `folder` (default: the working
        directory). Nothing is run. Raises RunFileError where it is not there.
        """
        came = sent.here()
        top, _, below = kind.removeprefix(PREFIX).partition(":")[0].partition(".")
        where = folder or Path.cwd()
        if came is not None and (came / sent.OWN / f"{top}.py").is_file() | (came / sent.OWN / top).is_dir():
            where = came / sent.OWN
        if (where / top).is_dir():
            paths = sorted(path for path in (where / top).rglob("*.py") if path.is_file())
        else:
            paths = [path for path in [where / f"{top}.py"] if path.is_file() and not below]
        files = tuple((path.relative_to(where).as_posix(), path.read_bytes()) for path in paths)
        code = cls(kind, files, str(where))
        if code.path_of(code.module) is None:
            wanted = code.module.replace(".", "/")
            raise RunFileError(
                "there is no such module",
                where=f"{kind}, looked for in {where}",
                found=", ".join(path for path, _ in files) or f"neither {top}.py nor {top}/",
                expected=f"{wanted}.py" + (f" or {wanted}/__init__.py" if below else f", or a package {wanted}/"),
                do="start medray where the module lies, or correct the name",
            )
        return code

    def path_of(self, module: str) -> str | None:
        """The file of a module, if it is one of these."""
        paths, stem = {path for path, _ in self.files}, module.replace(".", "/")
        return next((path for path in (f"{stem}/__init__.py", f"{stem}.py") if path in paths), None)

    def function(self) -> Any:
        """The function, its module imported as it was read. Raises UserError where that cannot be."""
        _OwnFinder.of(self)
        name = self.kind.rpartition(":")[2]
        try:
            return getattr(importlib.import_module(self.module), name)
        except AttributeError:
            what, cause = f"the module has no {name}", ""
        except ModuleNotFoundError as error:
            what, cause = "the module needs another one that cannot be imported", str(error)
        except Exception as error:  # of others' code, whatever it raises
            what, cause = "the module cannot be imported", f"{type(error).__name__}: {error}"
        do = "what lies beside the module is not looked at: put what it needs into one package, or install it"
        raise UserError(what, where=self.kind, found=cause, do=do if cause else "")


class _OwnFinder(MetaPathFinder, InspectLoader):
    """Imports modules of one OwnCode from what was read; their names are those of the files."""

    def __init__(self, code: OwnCode) -> None:
        self.code, self.top = code, code.module.partition(".")[0]

    @classmethod
    def of(cls, code: OwnCode) -> None:
        """Have this code imported from now on, in the place of other code of the same name that was read before.

        Raises UserError where a module of this name is imported from elsewhere.
        """
        top = code.module.partition(".")[0]
        earlier = [each for each in sys.meta_path if isinstance(each, cls) and each.top == top]
        if any(each.code.files == code.files for each in earlier):
            return
        module = sys.modules.get(top)
        if module is not None and not isinstance(getattr(module, "__loader__", None), cls):
            raise UserError(
                "a module of this name is imported already",
                where=code.kind,
                found=str(getattr(module, "__file__", None) or top),
                do="give your module another name",
            )
        for each in earlier:
            sys.meta_path.remove(each)
        for name in [name for name in sys.modules if name == top or name.startswith(f"{top}.")]:
            del sys.modules[name]
        sys.meta_path.insert(0, cls(code))

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self.top:
            return None
        file = self.code.path_of(fullname)
        # a folder without __init__.py that holds modules is a package, too
        inside = fullname.replace(".", "/") + "/"
        if file is None and not any(name.startswith(inside) for name, _ in self.code.files):
            return None
        spec = ModuleSpec(
            fullname, self, origin=file and f"{self.code.folder}/{file}", is_package=self.is_package(fullname)
        )
        spec.has_location = file is not None
        return spec

    def is_package(self, fullname: str) -> bool:
        file = self.code.path_of(fullname)
        return file is None or file.endswith("/__init__.py")

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(dict(self.code.files)[self.code.path_of(fullname) or ""])

    def get_code(self, fullname: str) -> CodeType | None:
        file = self.code.path_of(fullname)
        if file is None:
            return compile("", fullname, "exec")
        return self.source_to_code(dict(self.code.files)[file], f"{self.code.folder}/{file}")


class PythonModel(ModelBase):
    """A network that a function of one's own makes: function(inputs, outputs, **arguments) -> torch.nn.Module."""

    PREFIX: ClassVar[str] = PREFIX

    kind: str = Field(pattern=OWN_KIND)
    """The function: python:package.module:function, of a module in the folder that the command runs in."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """What the function gets by name, beside `inputs` (name to shape of each) and `outputs` (how many logits)."""
    digest: str | None = None
    """Digest of the function's source. A training sets it; where it is given, other source is refused."""
    _code: OwnCode | None = PrivateAttr(None)

    def with_code(self, code: OwnCode) -> PythonModel:
        """The same model with its source, which may then be imported. Raises BundleError for other source."""
        if self.digest not in (None, code.digest):
            raise BundleError(
                "the model's source is another than it was trained with",
                where=f"{self.kind} in {code.folder}",
                found=f"source with digest {code.digest}",
                expected=f"digest {self.digest}",
                do="bring the source back as it was, or train again",
            )
        made = self.model_copy(update={"digest": code.digest})
        made._code = code
        return made

    @property
    def code(self) -> OwnCode | None:
        return self._code

    def build(self, inputs: Inputs, outputs: int) -> nn.Module:
        """The function's network. Raises BundleError where no run file names the module; RunFileError for arguments that it
        does not take and for what is no network."""
        from torch import nn

        if self._code is None:
            raise not_trusted(self.kind)
        function = self._code.function()
        try:
            inspect.signature(function).bind(inputs, outputs, **self.arguments)
        except (TypeError, ValueError) as error:
            raise RunFileError(
                "the function does not take these arguments",
                where=f"[model.arguments] of {self.kind}",
                found=str(error),
                expected="function(inputs, outputs, **arguments)",
            ) from None
        network = function(inputs, outputs, **self.arguments)
        if not isinstance(network, nn.Module):
            raise RunFileError(
                "the function gives no network",
                where=self.kind,
                found=type(network).__name__,
                expected="torch.nn.Module",
            )
        return network


def not_trusted(kind: str) -> BundleError:
    return BundleError(
        "the bundle's model is code from a folder, which is not imported because a bundle says so",
        where=kind,
        found="no run file that names it",
        do=f'where you trust the code, name it in the run file or to Bundle.load: trust = ["{kind}"]',
    )


def own_code(model: Any, trusted: Collection[str]) -> OwnCode | None:
    """The source of a bundle's model, where the run file trusts it; None for a model of medray or of a plug-in.

    Raises BundleError where it is not trusted, or other than the model was trained with; RunFileError where it is missing.
    """
    if not isinstance(model, PythonModel):
        return None
    if model.code is not None:
        return model.code
    if model.kind not in trusted:
        raise not_trusted(model.kind)
    return model.with_code(OwnCode.read(model.kind)).code
