"""The net of a setting and its loss."""

from __future__ import annotations

from benchmarks.few_shot_images.sizes import Setting
from benchmarks.methods import Problem
from benchmarks.problems import conv_nets, losses


def problem(setting: Setting) -> Problem:
    """The net that the protocol names, with the setting's normalisation and activation."""
    activation = conv_nets.ACTIVATIONS[setting.activation]
    choices = conv_nets.Choices(conv_nets.NORMS[setting.norm], activation)
    net = conv_nets.NETS[setting.protocol.net](setting.ways, choices)
    return Problem(net, losses.cross_entropy)
