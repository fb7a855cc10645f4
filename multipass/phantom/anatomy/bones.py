"""Parametric bones, each in a standing frame in mm (x to the left, y to the back, z to the head).

Hip bone, sacrum and spine share the pelvis frame: its origin lies midway between the hip bones'
centres. Hip bone and femur are modelled for the left side; the right is a mirror image. The
femur's frame has its origin in the centre of the head, with the shaft running down. Control points
are rounded means of adult anatomy; scene.py bends and scales them for each patient.
The coccyx is a bone of its own, beside the sacrum: in the reference it is background.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from multipass.phantom.anatomy.shapes import (
    Cloud,
    ball,
    ellipsoid,
    plane,
    sheet,
    smooth_max,
    smooth_min,
    tube,
    union,
)

HIP_CENTRE = (88.0, -14.0, -41.0)  # of the left acetabulum, pelvis frame
HEAD_RADIUS = 23.0
SOCKET_RADIUS = 26.0  # bony; cartilage fills the gap
SACRUM_TIP = (0.0, 70.0, -14.0)


@cache
def _hip_parts() -> dict[str, Cloud]:
    wing = [
        [(118, 5, 90, 4), (108, 13, 91, 4), (98, 20, 92, 4), (86, 28, 91, 4), (72, 38, 88, 4.5)],
        [(131, -14, 76, 5), (113, 6, 76, 4), (92, 20, 76, 3.5), (72, 34, 76, 4), (57, 53, 74, 5.5)],
        [(130, -28, 63, 5.5), (116, -4, 63, 4), (94, 15, 63, 3), (72, 29, 63, 4), (50, 62, 62, 7)],
        [
            (123, -44, 50, 5.5),
            (117, -15, 50, 4.5),
            (96, 9, 50, 3),
            (72, 25, 50, 5),
            (46, 68, 50, 7.5),
        ],
        [
            (116, -53, 39, 5),
            (112, -24, 39, 4.5),
            (95, 5, 39, 3.5),
            (69, 25, 38, 7),
            (43, 69, 40, 7),
        ],
        [
            (113, -57, 28, 5),
            (106, -26, 28, 4.5),
            (90, 1, 28, 5),
            (66, 25, 26, 9),
            (47, 65, 28, 6.5),
        ],
        [
            (110, -50, 16, 5),
            (100, -24, 16, 6),
            (85, -1, 16, 8.5),
            (66, 24, 14, 10),
            (51, 56, 16, 5.5),
        ],
        [(104, -40, 4, 5), (95, -22, 4, 8), (84, -3, 4, 13), (73, 13, 3, 12), (66, 27, 5, 6)],
        [(100, -38, -8, 6), (92, -22, -9, 11), (83, -5, -9, 16), (75, 9, -9, 14), (71, 15, -10, 9)],
    ]
    ischium = [
        (72, 15, -36, 12), (67, 18, -52, 13.5), (65, 19, -66, 14), (64, 22, -78, 15),
        (62, 25, -89, 13.5), (57, 22, -98, 10),
    ]  # fmt: skip
    lower_ramus = [
        [
            (60, 24, -92, 8),
            (46, 8, -93, 5),
            (33, -9, -92, 4.5),
            (22, -24, -86, 5),
            (14, -38, -76, 6),
        ],
        [
            (57, 20, -101, 7),
            (45, 6, -105, 5.5),
            (35, -8, -103, 5),
            (25, -23, -97, 5),
            (14, -38, -86, 6),
        ],
    ]
    upper_ramus = [
        (74, -33, -40, 12), (60, -40, -46, 9.5), (45, -46, -50, 7.5), (29, -51, -54, 8),
        (15, -54, -60, 9),
    ]  # fmt: skip
    return {
        "wing": sheet(wing),
        "ischium": tube(ischium),
        "tuberosity": tube([(66, 8, -68, 10), (66, 28, -76, 12), (60, 32, -90, 9)]),
        "lower ramus": sheet(lower_ramus),
        "upper ramus": tube(upper_ramus),
        "pubic body": sheet(
            [[(8, -54, -60, 8), (20, -50, -60, 8)], [(8, -46, -78, 6.5), (17, -37, -76, 6.5)]]
        ),
        "quadrilateral plate": sheet(
            [[(60, -26, -24, 5), (61, 22, -20, 6)], [(54, -26, -50, 4), (57, 30, -46, 5)]]
        ),
        "spine": tube([(62, 26, -36, 8), (54, 37, -42, 4), (48, 43, -45, 2.5)]),
        "anterior inferior spine": tube([(98, -36, 2, 7), (98, -44, -6, 6), (92, -34, -16, 8)]),
    }


def hip_bone(points: np.ndarray) -> np.ndarray:
    """The left hip bone, its socket still filled where the socket is deeper than the cup."""
    parts = _hip_parts()
    cup = smooth_max(
        ball(points, (85, -12, -40), 34.5),
        plane(points, (92, -15.5, -42), (0.78, -0.3, -0.42)),
        6,
    )
    bone = union([parts["wing"](points), cup, parts["quadrilateral plate"](points)], 12)
    rami = union([parts["upper ramus"](points), parts["pubic body"](points)], 8)
    rami = smooth_min(rami, parts["lower ramus"](points), 5)
    seat = union([parts["ischium"](points), parts["tuberosity"](points)], 8)
    bone = union([bone, seat, rami], 7)
    bone = union([bone, parts["spine"](points), parts["anterior inferior spine"](points)], 7)
    notch = tube_notch()(points)
    bone = smooth_max(bone, 1 - notch, 3)
    bone = smooth_max(bone, SOCKET_RADIUS - ball(points, HIP_CENTRE, 0), 2)
    return smooth_max(bone, 2.6 - points[:, 0], 2)


@cache
def tube_notch() -> Cloud:
    """The acetabular notch and fossa, open downwards and forwards."""
    return tube([(76, -13, -42, 15), (78, -16, -58, 11), (82, -20, -78, 10)])


@cache
def _sacrum_parts() -> dict[str, Cloud]:
    rows = []
    for centre, inner, outer, edge in (
        ((12, 56, 15.0), (23, 14, 55, 13), (40, 26, 51, 11), (52, 29, 45, 9)),
        ((23, 49, 15.0), (22, 26, 48, 13), (40, 34, 43, 13), (51, 36, 34, 11)),
        ((37, 36, 13.0), (21, 39, 36, 12), (37, 43, 32, 12), (46, 46, 27, 10)),
        ((54, 20, 10.0), (18, 54, 20, 9.5), (31, 55, 18, 9), (40, 57, 16, 6.5)),
        ((66, 4, 8.0), (15, 65, 4, 7.5), (25, 62, 4, 6), (31, 62, 5, 4.5)),
        ((69, -13, 6.5), (10, 68, -13, 5.5), (17, 66, -11, 4.5), (20, 65, -10, 3.5)),
    ):
        side = [(inner, 1), (outer, 1), (edge, 1)]
        left = [(s[0], s[1], s[2], s[3]) for s, _ in side]
        right = [(-x, y, z, r) for x, y, z, r in reversed(left)]
        rows.append([*right, (0, *centre), *left])
    arches = [
        [(-24, 45, 52, 6), (-13, 54, 53, 4), (0, 58, 52, 4.5), (13, 54, 53, 4), (24, 45, 52, 6)],
        [(-22, 57, 36, 6), (-12, 66, 37, 4), (0, 69, 37, 5), (12, 66, 37, 4), (22, 57, 36, 6)],
        [(-18, 66, 20, 5), (-9, 73, 20, 3.5), (0, 75, 20, 4), (9, 73, 20, 3.5), (18, 66, 20, 5)],
        [(-14, 72, 5, 3.5), (-8, 75, 5, 3), (0, 76, 4, 3), (8, 75, 5, 3), (14, 72, 5, 3.5)],
    ]
    crest = [(0, 64, 57, 3), (0, 74, 42, 4), (0, 78, 32, 3), (0, 81, 20, 3.5), (0, 78, 4, 2.5)]
    return {
        "body": sheet(rows),
        "arches": sheet(arches),
        "crest": tube(crest),
        "canal": tube(
            [(0, 36, 72, 10), (0, 41, 55, 9.5), (0, 53, 38, 7), (0, 64, 20, 5), (0, 70, 4, 3)]
        ),
    }


@cache
def _foramina() -> Cloud:
    """Pelvic and dorsal openings of S1 to S4, straight through the plate."""
    balls = []
    openings: list[tuple[float, ...]] = [
        (25, 31, 46, 5.5),
        (23, 45, 29, 5),
        (20.5, 57, 12, 4.4),
        (17, 65, -3, 3.6),
    ]
    for x, y, z, radius in openings:
        for side in (-1, 1):
            for t in np.arange(-26, 26, 1.5):
                flare = 1.0 + 0.35 * max(-float(t) - 6, 0) / 10
                balls.append((side * (x - 0.1 * t), y + 0.82 * t, z + 0.57 * t, radius * flare))
    return Cloud(np.array(balls))


def sacrum(points: np.ndarray) -> np.ndarray:
    parts = _sacrum_parts()
    bone = union([parts["body"](points), parts["arches"](points), parts["crest"](points)], 5)
    bone = smooth_max(bone, 1 - parts["canal"](points), 2)
    bone = smooth_max(bone, -_foramina()(points), 3)
    bone = smooth_max(bone, plane(points, (0, 11, 63.5), (0, -0.58, 0.81)), 4)
    return smooth_min(bone, np.maximum(_facets()(points), 1 - parts["canal"](points)), 5)


@cache
def _facets() -> Cloud:
    """The articular processes that carry L5."""
    ends = [((s * 25, 36, 46), (s * 23, 45, 65)) for s in (-1, 1)]
    points = np.concatenate([np.linspace(a, b, 12) for a, b in ends])
    return Cloud(np.column_stack([points, np.full(len(points), 6.0)]))


@cache
def _coccyx() -> Cloud:
    return Cloud(
        np.array(
            [(0, 69, -24, 6), (0, 66, -31, 5), (0, 61, -38, 4.5), (0, 55, -43, 4), (0, 50, -46, 3)]
        )
    )


def coccyx(points: np.ndarray) -> np.ndarray:
    return smooth_max(_coccyx()(points), 2.5 - ball(points, (0, 69, -13), 6.5), 1)


@cache
def _femur_parts() -> dict[str, Cloud]:
    shaft = [
        (41, 9, -48, 16.5), (41.5, 9, -62, 16), (41.5, 8, -85, 14.5), (41, 6, -120, 14),
        (40, 3, -170, 13.7), (38, 2, -230, 14), (35, 4, -300, 15), (31, 9, -370, 19),
        (28, 12, -410, 26),
    ]  # fmt: skip
    return {
        "neck": tube([(4, 0, -3, 16.5), (17, 2, -13, 15), (30, 5, -25, 16), (40, 8, -42, 16.5)]),
        "shaft": tube(shaft, 3.0),
        "greater trochanter": sheet(
            [
                [(44, 2, -10, 8), (46, 16, -1, 7.5), (43, 22, 2, 6)],
                [(55, 1, -24, 10), (56, 14, -18, 10), (48, 24, -14, 7)],
                [(52, 5, -46, 12), (52, 12, -46, 12), (46, 20, -40, 8)],
            ]
        ),
        "lesser trochanter": tube([(36, 12, -58, 10), (27, 20, -54, 7.5), (23, 23, -52, 6)]),
        "crest": tube([(44, 24, -4, 6), (38, 25, -25, 5.5), (28, 23, -48, 6)]),
        "linea aspera": tube([(41, 20, -80, 3.5), (41, 18, -130, 4), (39, 15, -220, 4)], 3.0),
    }


def femur(points: np.ndarray) -> np.ndarray:
    """The left femur down to the condyles' upper edge, head centre at the origin."""
    parts = _femur_parts()
    head = ellipsoid(points, (0, 0, 0), (HEAD_RADIUS,) * 3)
    bone = smooth_min(head, parts["neck"](points), 9)
    bone = smooth_min(bone, parts["shaft"](points), 8)
    bone = union([bone, parts["greater trochanter"](points), parts["lesser trochanter"](points)], 9)
    bone = union([bone, parts["crest"](points), parts["linea aspera"](points)], 5)
    return smooth_max(bone, 5 - ball(points, (-22.5, -1, -5), 0), 2)
