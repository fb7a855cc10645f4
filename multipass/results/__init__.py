"""What a case's folder holds, for people: masks, flags, pictures, pages. No network runs here."""
