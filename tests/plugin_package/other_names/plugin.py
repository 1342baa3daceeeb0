"""What the entry point of the package loads: it registers the copies."""

from odeopt import ADJOINTS, FIELDS, SOLVERS
from other_names import OtherAdam, OtherContinuous, OtherRKC

SOLVERS.register("other-rkc")(OtherRKC)
FIELDS.register("other-adam")(OtherAdam)
ADJOINTS.register("other-continuous")(OtherContinuous)
