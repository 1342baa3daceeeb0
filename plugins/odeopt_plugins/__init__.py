"""Plugins that ship with odeopt, registered through the same entry point as anyone's."""

from odeopt_plugins import nesterov_flow as nesterov_flow
