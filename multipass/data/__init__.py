"""What lies in folders: scans to segment, patient files, cohorts. Nothing of a network enters."""
