"""A synthetic cohort of pelvic CT scans with reference segmentations, from parametric anatomy.

    subject = make_subject(seed=1, index=0, matrix=256, position="HFP", implant="")
    write_subject(folder, subject)
    volume, label = draw_labelled(seed=1, index=0, matrix=256)  # arrays alone, 6 is other bone

The five structures are those of `multipass.structures.PELVIS`. The coccyx, the spine and the ribs
are bone that belongs to no structure, and so is the metal of implants: around a hip prosthesis, hip
bone and femur are the bone that remains. A scene is worked out once, on lattices of 2 mm (bones, as
distances) and 3 to 4 mm (soft tissue), and both picture and reference are read off it.
"""

from multipass.phantom.recipe import Recipe, draw_recipe
from multipass.phantom.subject import Subject, draw_labelled, make_subject
from multipass.phantom.writer import write_subject

__all__ = ["Recipe", "Subject", "draw_labelled", "draw_recipe", "make_subject", "write_subject"]
