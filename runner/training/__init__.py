"""How one trial is trained: data as tensors, the network, the reference loop, checkpoints; ``fast/`` does it sooner.
A training is a generator that yields after every epoch: it knows neither Optuna nor MLflow, and decides nothing."""
