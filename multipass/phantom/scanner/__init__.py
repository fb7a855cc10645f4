"""From a synthetic patient to its CT: tissue in Hounsfield units, blur, noise, streaks."""
