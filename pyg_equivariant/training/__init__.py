"""Lightning tasks, losses, recipes and the command line."""
