"""The core: its parts, the modules of each, and the tests that are run on their mutants.

The nearest tests of a module come first, for most mutants go with them; then those of its part,
the cheaper ones first. A new module in a folder of the core has the tests of its part at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path


@dataclass(frozen=True)
class Part:
    """A part of the core.

    Attributes:
        sources: folders, of which each module belongs to it, and single modules.
        tests: what is run for every module, the nearest and cheapest first: test files below
            `tests`, or single tests by their ids.
        nearest: what comes first for one module, by its path below `odeopt`.
    """

    sources: tuple[str, ...]
    tests: tuple[str, ...]
    nearest: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def modules(self, root: Path) -> list[str]:
        """The paths of its modules, from the root of the repository; none of `__init__` files."""
        found: list[Path] = []
        for source in self.sources:
            path = root / "odeopt" / source
            found += sorted(path.glob("*.py")) if path.is_dir() else [path]
        return [str(path.relative_to(root)) for path in found if path.name != "__init__.py"]

    def tests_of(self, module: str) -> tuple[str, ...]:
        """The tests of a module, in their order."""
        nearest = self.nearest.get(module.removeprefix("odeopt/"), ())
        return tuple(dict.fromkeys(f"tests/{name}" for name in (*nearest, *self.tests)))

    def tests_of_all(self, modules: Iterable[str]) -> tuple[str, ...]:
        """The tests of some modules, each once."""
        return tuple(dict.fromkeys(name for module in modules for name in self.tests_of(module)))


_STABILIZED = (
    "solver/test_stabilized.py::test_a_stiff_quadratic_against_its_closed_form",
    "solver/test_stabilized.py::test_few_stages_make_short_steps",
    "solver/test_stabilized.py::test_too_many_steps_and_what_is_not_finite_raise",
    "solver/test_stabilized_tasks.py::test_equal_tasks_are_exactly_a_loop_over_them",
    "solver/test_stabilized_adjoint.py::test_observed_states_and_intervals_of_zero_length",
    "solver/test_stabilized.py::test_a_radius_that_is_a_fifth_too_small_is_found_out",
)
"""Of the files of the stabilised solver, which take minutes, what looks at its sweep."""

_STAGES = "solver/test_stabilized_adjoint.py::test_the_gradient_is_autograds_through_the_same_steps"
_DECLARED = "test_public_api.py::test_names_and_signatures_are_those_of_the_snapshot"
_RESUMED = "plugins/test_copies.py::test_an_interrupted_solve_goes_on"
_FUZZ = "fuzz/test_fuzz.py::test_random_compositions_are_those_of_autograd"

_PARTS = {
    "sweeps": Part(
        (
            "engine/adaptive.py", "engine/backward.py", "engine/forward.py", "engine/journal.py",
            "engine/kept.py", "engine/kernels.py", "engine/run.py", "engine/steppers.py",
            "solver/error_control.py", "solver/spectral_radius.py", "solver/stabilized.py",
        ),
        (
            "engine/test_rows.py",
            "properties/test_impure_losses.py",
            "adjoint/test_discrete.py",
            "gradient/test_observed_states.py",
            "checkpoint/test_online.py",
            "properties/test_skipped_tasks.py",
            _FUZZ,
        ),
        {
            "engine/adaptive.py": (
                "solver/test_steps_by_hand.py", "solver/test_adaptive_steps.py", _STAGES, _RESUMED,
            ),
            "solver/stabilized.py": ("solver/test_steps_by_hand.py", *_STABILIZED),
            "solver/spectral_radius.py": (
                "solver/test_power_iteration.py", "solver/test_steps_by_hand.py", *_STABILIZED,
                "properties/test_limits.py",
            ),
            "engine/steppers.py": (
                "solver/test_torchdiffeq_options.py", "solver/test_adaptive_steps.py",
                "gradient/test_observed_states.py", "gradient/test_error_estimate.py", _RESUMED,
            ),
            "engine/journal.py": (
                "checkpoint/test_resume_identity.py", "checkpoint/test_resume.py",
                "checkpoint/test_resume_folder.py",
            ),
            "engine/forward.py": (
                "adjoint/test_continuous_meshes.py",
                _RESUMED,
                "adjoint/test_truncated_and_first_order.py",
                "properties/test_impure_losses.py",
                "checkpoint/test_resume.py",
            ),
            "engine/backward.py": (
                "adjoint/test_discrete.py", "checkpoint/test_resume.py",
                "adjoint/test_truncated_and_first_order.py",
                "properties/test_changes_after_the_solve.py", "properties/test_limits.py",
                "engine/test_compilation.py::test_an_adjoint_with_a_method_of_its_own_is_compiled_once",
            ),
            "engine/kept.py": ("checkpoint/test_tiers.py", "checkpoint/test_resume.py"),
            "engine/run.py": ("properties/test_changes_after_the_solve.py",),
        },
    ),
    "adjoints": Part(
        ("adjoint",),
        (
            "adjoint/test_differentiation.py",
            "adjoint/test_hermite.py",
            "adjoint/test_truncated_and_first_order.py",
            "adjoint/test_discrete.py",
            "adjoint/test_continuous_quadratics.py",
            "properties/test_choices.py",
            "solver/test_costs.py",
            _FUZZ,
        ),
        {
            "adjoint/base.py": ("gradient/test_error_estimate.py",),
            "adjoint/discrete.py": ("gradient/test_error_estimate.py",),
            "adjoint/backsolve.py": ("adjoint/test_backsolve.py", "properties/test_limits.py"),
            "adjoint/continuous.py": (
                "adjoint/test_continuous_meshes.py", "properties/test_limits.py",
            ),
            "adjoint/implicit.py": ("plugins/test_implicit.py",),
        },
    ),
    "rules": Part(
        (
            "inner/adam.py", "inner/adaptive_rates.py", "inner/clipping.py", "inner/leafwise.py",
            "inner/rprop.py", "inner/rule.py", "inner/sgd.py", "inner/torch_rule.py",
        ),
        (
            "inner/test_clipping.py",
            "inner/test_rates_of_zero.py",
            "inner/test_rules_against_torch.py",
            "inner/test_more_rules_against_torch.py",
            "inner/test_rule_gradients.py",
            "inner/test_what_else_is_differentiated.py",
            _FUZZ,
        ),
        {"inner/rule.py": ("inner/test_rule_modules.py",)},
    ),
    "schedules": Part(
        ("checkpoint",),
        ("checkpoint/test_schedules.py", "checkpoint/test_tiers.py", "checkpoint/test_budget.py",
         "checkpoint/test_online.py", _FUZZ),
        {
            "checkpoint/uniform.py": ("adjoint/test_continuous_meshes.py",),
            "checkpoint/online.py": (
                "checkpoint/test_online.py", "adjoint/test_continuous_meshes.py",
            ),
            "checkpoint/budget.py": ("checkpoint/test_budget.py", "checkpoint/test_tiers.py"),
        },
    ),
    "events": Part(("gradient/event.py",), ("gradient/test_event.py", _FUZZ)),
    "stores": Part(
        ("checkpoint/store", "tools/files.py", "tools/locks.py", "tools/packing.py"),
        (
            "tools/test_files.py",
            "tools/test_locks.py",
            "checkpoint/test_stores.py",
            "checkpoint/test_resume_folder.py",
            "checkpoint/test_resume.py",
            "checkpoint/test_resume_identity.py",
            _FUZZ,
        ),
        {
            "checkpoint/store/host.py": ("checkpoint/test_tiers.py",),
        },
    ),
    "learner": Part(
        (
            "outer/learner.py", "outer/method.py", "outer/metrics.py", "outer/outer_loop.py",
            "outer/run_folder.py",
        ),
        (
            "outer/test_arguments.py",
            "outer/test_metrics.py",
            "outer/test_task_pool.py",
            "outer/test_run_folder.py",
            "outer/test_checkpoints.py",
            "outer/test_learner.py",
            "outer/test_outer_loop.py",
        ),
        {
            "outer/method.py": (
                "plugins/test_reptile.py",
                "plugins/test_horizon.py::test_looks",
                "plugins/test_horizon.py::test_choose_is_early_stopping",
                "plugins/test_horizon.py::test_patience_lets_a_later_minimum_go",
                "plugins/test_horizon.py::test_wrong_settings_are_refused",
                "plugins/test_horizon.py::test_a_task_that_diverges_late_stops_before",
                "plugins/test_horizon.py::test_the_search_for_the_horizon_is_counted",
            ),
            "outer/outer_loop.py": (
                "outer/test_checkpoints.py",
                "outer/workers/test_workers.py::test_one_worker_writes",
            ),
        },
    ),
    "merging": Part(
        ("outer/workers/merging.py", "outer/workers/spreading.py"),
        ("outer/workers/test_one_worker.py", "outer/workers/test_workers.py"),
    ),
}  # fmt: skip

PARTS = {name: replace(part, tests=(_DECLARED, *part.tests)) for name, part in _PARTS.items()}
"""With what classes declare, which is looked at for every module."""

DESELECTED = (
    "tests/gradient/test_event.py::test_each_task_stops_at_its_own_time",
    "tests/outer/test_learner.py::test_every_method_learns",
    "tests/checkpoint/test_resume.py::test_an_adaptive_solve_goes_on",
)
"""Tests that take much longer than those which look at the same code."""
