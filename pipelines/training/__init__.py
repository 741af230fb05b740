"""`dataengine train`: recipes of stages, the data they read, launchers, evaluation on the way, and the run's report."""
