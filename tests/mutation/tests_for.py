"""The core: its parts, the modules of each, and the tests that are run on their mutants.

The nearest tests of a module come first, for most mutants go with them; then those of its part,
the cheaper ones first. A new module in a folder of the core has the tests of its part at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
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

PARTS = {
    "sweeps": Part(
        ("sweep", "replay.py", "noted.py"),
        (
            "memory/test_rows.py",
            "safety/test_impure_losses.py",
            "adjoint/test_discrete.py",
            "tasks/test_observed_states.py",
            "checkpoint/test_online.py",
            "safety/test_skipped_tasks.py",
        ),
        {
            "sweep/adaptive.py": (
                "solver/test_steps_by_hand.py", "solver/test_adaptive_steps.py",
            ),
            "sweep/stabilized.py": ("solver/test_steps_by_hand.py", *_STABILIZED),
            "sweep/power.py": (
                "solver/test_power_iteration.py", "solver/test_steps_by_hand.py", *_STABILIZED,
                "safety/test_limits.py",
            ),
            "sweep/stepper.py": ("solver/test_torchdiffeq_options.py",),
            "sweep/spectrum.py": ("safety/test_limits.py",),
            "sweep/progress.py": ("memory/test_resume.py", "memory/test_resume_folder.py"),
            "sweep/forward.py": (
                "adjoint/test_truncated_and_first_order.py",
                "safety/test_impure_losses.py",
                "memory/test_resume.py",
            ),
            "sweep/backward.py": ("adjoint/test_discrete.py", "memory/test_resume.py"),
            "sweep/kept.py": ("memory/test_tiers.py", "memory/test_resume.py"),
            "replay.py": ("safety/test_changes_after_the_solve.py",),
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
            "safety/test_choices.py",
        ),
        {
            "adjoint/backsolve.py": ("adjoint/test_backsolve.py",),
            "adjoint/continuous.py": ("safety/test_limits.py", "adjoint/test_continuous_meshes.py"),
            "adjoint/implicit.py": ("methods/test_implicit.py",),
            "adjoint/linear_solver.py": ("methods/test_implicit.py",),
        },
    ),
    "rules": Part(
        ("rule",),
        (
            "rule/test_clipping.py",
            "rule/test_rates_of_zero.py",
            "rule/test_against_torch.py",
            "rule/test_gradients.py",
            "rule/test_what_else_is_differentiated.py",
        ),
    ),
    "schedules": Part(
        ("checkpoint",),
        ("checkpoint/test_schedules.py", "memory/test_tiers.py", "memory/test_budget.py",
         "checkpoint/test_online.py"),
        {
            "checkpoint/online.py": ("checkpoint/test_online.py",),
            "checkpoint/placed.py": ("memory/test_tiers.py",),
            "checkpoint/budget.py": ("memory/test_budget.py",),
        },
    ),
    "events": Part(("event.py", "root.py"), ("test_event.py",)),
    "stores": Part(
        ("store", "files.py", "locks.py", "identity.py"),
        (
            "test_files.py",
            "test_locks.py",
            "memory/test_stores.py",
            "memory/test_resume_folder.py",
            "memory/test_resume.py",
            "memory/test_resume_identity.py",
        ),
        {
            "identity.py": ("memory/test_resume_identity.py",),
            "store/host.py": ("memory/test_tiers.py",),
        },
    ),
    "learner": Part(
        ("meta",),
        (
            "meta/test_arguments.py",
            "meta/test_metrics.py",
            "meta/test_pool.py",
            "meta/test_run_folder.py",
            "meta/test_checkpoints.py",
            "meta/test_learner.py",
        ),
        {
            "meta/inner_loop.py": (
                "methods/test_horizon.py::test_looks",
                "methods/test_horizon.py::test_choose_is_early_stopping",
                "methods/test_horizon.py::test_patience_lets_a_later_minimum_go",
                "methods/test_horizon.py::test_wrong_settings_are_refused",
                "methods/test_horizon.py::test_a_task_that_diverges_late_stops_before",
                "methods/test_horizon.py::test_the_search_for_the_horizon_is_counted",
            ),
            "meta/method.py": ("methods/test_reptile.py",),
            "meta/keeper.py": (
                "meta/test_checkpoints.py", "distributed/test_workers.py::test_one_worker_writes",
            ),
        },
    ),
    "merging": Part(
        ("distributed/merging.py", "distributed/share.py"),
        ("distributed/test_one_worker.py", "distributed/test_workers.py"),
    ),
}  # fmt: skip

DESELECTED = (
    "tests/test_event.py::test_each_task_stops_at_its_own_time",
    "tests/meta/test_learner.py::test_every_method_learns",
    "tests/memory/test_resume.py::test_an_adaptive_solve_goes_on",
)
"""Tests that take much longer than those which look at the same code."""
