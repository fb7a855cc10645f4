"""Arms, hands and feet of whole bodies, and the shafts of their long bones.

Left side; arms in the pelvis frame, legs and feet in the femur's, mm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multipass.phantom.anatomy.shapes import Cloud, sheet, tube

Line = Sequence[tuple[float, float, float]]

# Shoulder, elbow, wrist, ends of the fingers
ARMS = {
    "arms down": ((172, 18, 498), (212, 34, 205), (208, 4, -40), (196, -12, -190)),
    "arms up": ((172, 8, 512), (178, -34, 800), (60, -70, 935), (-60, -76, 1010)),
}  # fmt: skip
# Along the middle of a shin's bones, and the compact bone around the marrow there
SHINS = {
    "tibia": ([(27, 4, -550), (25, 4, -650), (24, 8, -760)], (3.0, 6.0)),
    "fibula": ([(57, 26, -520), (56, 24, -620), (50, 21, -770)], (1.8, 3.2)),
}
IN_FEMUR_FRAME = ("femur", *SHINS)
# Ends of a long bone of the arm as indices into ARMS, shift across, compact bone
ARM_BONES = {
    "humerus": (0, 0.0, (2.2, 4.5)), "radius": (1, 8.0, (1.6, 3.2)), "ulna": (1, -8.0, (1.6, 3.2)),
}  # fmt: skip
RAYS = (-2, -1, 0, 1, 2)


def shaft(bone: str, arms: str) -> tuple[Line, tuple[float, float]] | None:
    """A line along a long bone's shaft, and the least and greatest thickness of its cortex in mm;
    None for other bones."""
    if bone in SHINS:
        return SHINS[bone]
    if bone not in ARM_BONES or not arms:
        return None
    first, shift, cortex_mm = ARM_BONES[bone]
    start, end = (np.add(ARMS[arms][first + i], (shift, 0, 0)) for i in (0, 1))
    places = [tuple((start + t * (end - start)).tolist()) for t in (0.22, 0.5, 0.8)]
    return places, cortex_mm


def rod(
    start: np.ndarray, end: np.ndarray, first_mm: float, shaft_mm: float, last_mm: float
) -> Cloud:
    """A long bone with thick ends."""
    places, radii = (0, 0.12, 0.5, 0.9, 1), (first_mm, shaft_mm * 1.15, shaft_mm, shaft_mm, last_mm)
    return tube([(*(start + t * (end - start)), r) for t, r in zip(places, radii, strict=True)])


def both(*clouds: Cloud) -> Cloud:
    return Cloud(np.concatenate([np.column_stack([c.tree.data, c.radii[:-1]]) for c in clouds]))


def hand(wrist: np.ndarray, fingers: np.ndarray, arms: str) -> Cloud:
    """Wrist, and five rays of metacarpal and finger, spread like those of a flat hand."""
    way = fingers - wrist
    across = np.cross(way, (1, 0, 0) if arms == "arms down" else (0, 1, 0))
    across /= np.linalg.norm(across)
    bones = []
    for ray in RAYS:
        base, knuckle = (wrist + t * way + ray * w * across for t, w in ((0.2, 8), (0.55, 13)))
        tip = wrist + (1 - 0.06 * abs(ray)) * way + ray * 16 * across
        bones += [rod(base, knuckle, 6, 4, 6.5), rod(knuckle + 0.2 * (tip - knuckle), tip, 5, 3, 4)]
        bones.append(tube([(*(wrist + 0.06 * way + ray * 6 * across), 8.5)] * 2))
    return both(*bones)


def foot_bones() -> dict[str, Cloud]:
    """A foot that hangs down as it does on a table: the toes lie lower than the heel."""
    rays = {}
    for i in range(5):
        base, ball, tip = (
            np.array(place)
            for place in (
                (12 + 9 * i, -42 + 5 * i, -872 + 4 * i), (4 + 14 * i, -86 + 8 * i, -912 + 6 * i),
                (3 + 15 * i, -122 + 14 * i, -932 + 8 * i),
            )
        )  # fmt: skip
        thick = 1.5 if i == 0 else 1.0
        metatarsal = rod(base, ball, 7 * thick, 4 * thick, 6 * thick)
        toe = rod(ball + 0.3 * (tip - ball), tip, 5 * thick, 3.5 * thick, 4 * thick)
        rays[f"metatarsal {i + 1}"], rays[f"toe {i + 1}"] = metatarsal, toe
    return {
        "talus": tube([(24, 22, -832, 13), (22, 4, -832, 14), (16, -12, -844, 11)]),
        "calcaneus": tube([(30, -6, -860, 11), (27, 20, -864, 14), (25, 50, -866, 16)]),
        "tarsus": sheet(
            [[(12, -22, -856, 10), (40, -14, -864, 9)], [(12, -32, -864, 9), (44, -20, -860, 8)]]
        ),
    } | rays
