"""RoI mask heads, one file a method; importing this package registers them all."""

from psis_d2.modeling.mask_heads import (  # noqa: F401
    contrastmask,
    cpmask,
    fcn,
    hourglass,
    maskx,
    opmask,
    shapemask,
    shapeprop,
    teacher_student,
)
