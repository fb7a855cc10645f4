"""The bones and organs of a synthetic patient, as distances in mm. No Hounsfield units."""
