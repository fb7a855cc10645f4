"""How well a mask agrees with a reference, in the field's measures. Nothing is written here but
tables."""
