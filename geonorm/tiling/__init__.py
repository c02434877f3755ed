"""Where tiles lie, and the loop over them."""
