"""How strong each lead is, and one linear layer: enough to tell which way a heart lies."""

from typing import Literal

from medray.learning.models.base import ModelBase


class LeadsSpec(ModelBase):
    kind: Literal["ecg_leads"] = "ecg_leads"
    scale: float = 1.0
    """What the strength of a lead is multiplied with."""

    def build(self, inputs, outputs):
        from torch import nn  # not above: run files are read without torch

        class Leads(nn.Module):
            def forward(self, sequence, mask):  # (B, T, L), (B, T) -> (B, K)
                return self.linear(self.scale * sequence.square().mean(1).sqrt())

        network = Leads()
        network.linear, network.scale = nn.Linear(inputs["sequence"].shape[1], outputs), self.scale
        return network
