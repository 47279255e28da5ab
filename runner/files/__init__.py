"""Everything that is read from disk: sweep files, the search space in them, ``mlflow.yaml``, images; and a trial's
config and record, which all rooms hand to one another. Nothing here imports torch, Optuna or MLflow when it is itself
imported, so that a mistake in a file is answered within a second."""
