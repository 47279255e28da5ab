"""MLflow: runs, curves and views as a projection of the study, sent by a thread that tries again. The only room that
imports MLflow; it reads no study, and no training waits for it."""
