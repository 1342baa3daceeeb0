"""Plugins that ship with odeopt, registered through the same entry point as anyone's."""

from odeopt_plugins import a_maml as a_maml
from odeopt_plugins import a_maml_released as a_maml_released
from odeopt_plugins import anil as anil
from odeopt_plugins import comln as comln
from odeopt_plugins import imaml as imaml
from odeopt_plugins import inductor_cpu as inductor_cpu
from odeopt_plugins import maml as maml
from odeopt_plugins import meta_sgd as meta_sgd
from odeopt_plugins import nesterov_flow as nesterov_flow
from odeopt_plugins import reptile as reptile
