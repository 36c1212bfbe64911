"""`tlkit data ...`: what is in the pictures, before anything trains on them."""
