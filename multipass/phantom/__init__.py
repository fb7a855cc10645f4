"""A synthetic cohort of pelvic CT scans with reference segmentations, from parametric anatomy."""

from multipass.phantom.recipe import Recipe, draw_recipe
from multipass.phantom.subject import Subject, make_subject
from multipass.phantom.writer import write_subject

__all__ = ["Recipe", "Subject", "draw_recipe", "make_subject", "write_subject"]
