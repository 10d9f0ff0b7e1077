"""From molecules, materials and files to geometric graphs."""
