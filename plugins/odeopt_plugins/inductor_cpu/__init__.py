"""The compile backend "inductor-cpu": Inductor, tuned for kernels of small networks on a CPU."""

from odeopt_plugins.inductor_cpu.backend import InductorCPU as InductorCPU
