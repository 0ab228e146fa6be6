"""CondInst and BoxInst: masks from filters that the detector predicts for each object.

Importing this package registers the meta-architecture.
"""

from psis_d2.modeling.condinst import meta_arch  # noqa: F401
