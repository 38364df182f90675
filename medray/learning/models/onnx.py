"""onnx: the network of an ONNX file, computed by onnxruntime. It scores, and is not trained."""

# B batch, K output

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from medray.errors import RunFileError
from medray.learning.models.base import ModelBase
from medray.modalities.inputs import Inputs

if TYPE_CHECKING:
    from torch import nn

    from medray.learning.objectives.base import Objective
    from medray.learning.onnx_files.reading import OnnxFile

WHERE = "[model] file"


class OnnxSpec(ModelBase):
    same_bits: ClassVar[bool] = True
    computed_by: ClassVar[Literal["torch", "onnxruntime"]] = "onnxruntime"
    trainable: ClassVar[bool] = False

    kind: Literal["onnx"] = "onnx"
    """The model: the network of an ONNX file, which `medray import` makes a bundle of."""
    inputs: dict[str, str] = Field(default_factory=dict, exclude_if=lambda inputs: not inputs)
    """The modality's input that each input of the graph is, by its name there; not needed where the names are the same, or where
    both have one: inputs = {image = "pixels"}."""
    output: str | None = Field(default=None, exclude_if=lambda output: output is None)
    """The graph's output that is meant, where it has several."""
    layout: Literal["auto", "channels_first", "channels_last"] = Field(
        default="auto", exclude_if=lambda layout: layout == "auto"
    )
    """Where the graph has an image's channels; auto: where the shape of its input says it."""
    answers: Literal["logits", "probabilities"] | None = Field(default=None, exclude_if=lambda answers: answers is None)
    """What the graph gives, where it does not end with the objective's softmax or sigmoid; none: logits, and answers that look like
    probabilities are refused."""
    network: dict[str, Any] | None = Field(default=None, exclude_if=lambda network: network is None)
    """Fitted: the network as it was read. Not to be set in a run file."""
    link: str = Field(default="linear", exclude_if=lambda link: link == "linear")
    """Fitted: what makes probabilities of logits, where the graph gives probabilities. Not to be set in a run file."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.network is not None:
            from medray.learning.onnx_files.network import Network

            Network.model_validate(self.network)
        return self

    def build(self, inputs: Inputs, outputs: int) -> nn.Module:
        """The modality's inputs, laid out as the graph has them, to logits (B, outputs). Raises RunFileError for other outputs than
        the graph has, and where no file has been read."""
        from medray.learning.onnx_files.network import Network, OnnxModule

        if self.network is None:
            raise RunFileError(
                "a model of kind onnx comes out of a file",
                where="[model] kind",
                do="medray import FILE.onnx --like RUN.toml makes a bundle of it, which scores and is not trained",
            )
        network = Network.model_validate(self.network)
        if network.width != outputs:
            raise RunFileError(
                "the ONNX model has other outputs than the objective",
                where=WHERE,
                found=str(network.width),
                expected=str(outputs),
                do="choose the objective that it was built for: binary has one output, multiclass one for each class",
            )
        return OnnxModule(network, self.answers, self.link)

    def settled(self, found: OnnxFile, objective: Objective) -> OnnxSpec:
        """These settings with the network of a file, whose last activation is left to the objective.

        Raises RunFileError where that is not what the objective does, and where it is not clear what the answers are.
        """
        ends, wanted = found.network.link, objective.link
        if ends not in ("linear", wanted):
            raise RunFileError(
                "the ONNX model ends with another activation than the objective has",
                where=WHERE,
                found=ends,
                expected="none, for logits" + (f", or {wanted}" if wanted not in (None, "linear") else ""),
                do="choose the objective that it was built for, or export the model without its last activation",
            )
        if ends != "linear" and self.answers is not None:
            raise RunFileError(
                "what the graph gives is clear: its last activation is taken off",
                where="[model] answers",
                found=f"{ends} at its end, and answers = {self.answers!r}",
                do="leave out answers",
            )
        if (
            ends == "linear"
            and self.answers is None
            and wanted in ("softmax", "sigmoid")
            and found.looks_like != "linear"
        ):
            raise RunFileError(
                "the ONNX model's answers look like probabilities, which would be taken for logits",
                where=WHERE,
                found="numbers from 0 to 1, of random inputs",
                do='say what they are: [model] answers = "probabilities" or "logits"',
            )
        if self.answers == "probabilities" and (wanted not in ("softmax", "sigmoid") or found.looks_like == "linear"):
            raise RunFileError(
                "the ONNX model's answers are no probabilities of this objective",
                where="[model] answers",
                found=found.looks_like if wanted in ("softmax", "sigmoid") else f"an objective with the link {wanted}",
                do='set answers = "logits"',
            )
        link = str(wanted) if self.answers == "probabilities" else "linear"
        return self.model_copy(update={"network": found.network.model_dump(mode="json"), "link": link})
